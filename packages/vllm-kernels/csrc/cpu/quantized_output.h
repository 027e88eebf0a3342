// What the products of quantised weights share: how panels are handed to threads, and how sums leave.
#pragma once

#include "gemm_epilogue.h"
#include "parallel.h"
#include "quantized_layout.h"

namespace {

inline Output output_of(const Layout& layout, void* out, const void* bias, const void* residual, int32_t dtype,
                        int32_t out_dtype, int32_t gate) {
  return {out,
          bias,
          residual,
          layout.results(),
          layout.results(),
          static_cast<DType>(dtype),
          static_cast<DType>(out_dtype),
          static_cast<Gate>(gate)};
}

// sums [rows][64] of a panel times the factors of its lanes, then the epilogue.
inline void finish_quantized(const Output& out, const float* factors, float* sums, int rows, int64_t row,
                             int64_t panel) {
  for (int lane = 0; lane < kPanel; lane += kLanes) {
    const Vec factor = load(factors + panel * kPanel + lane);
    for (int r = 0; r < rows; ++r) store(sums + r * kPanel + lane, load(sums + r * kPanel + lane) * factor);
  }
  finish(out, sums, rows, row, panel);
}

// Calls body(panel, begin, end) so that all panels meet all rows. Where there are few panels, one is shared by several
// threads, each with at least `fewest` of the rows.
template <class Body>
void for_panels(const Layout& layout, int64_t rows, int64_t fewest, int threads, const Body& body) {
  const int64_t panels = layout.panels(), wanted = (4 * threads + panels - 1) / panels;
  const int64_t parts = smaller(wanted, (rows + fewest - 1) / fewest);
  parallel_for(panels * parts, layout.panel_bytes(), threads, [&](int64_t i) {
    const int64_t part = i % parts;
    body(i / parts, rows * part / parts, rows * (part + 1) / parts);
  });
}

}  // namespace
