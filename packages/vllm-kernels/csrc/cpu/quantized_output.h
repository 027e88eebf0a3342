// What the products of quantised weights share: how panels are handed to threads, and how sums leave.
#pragma once

#include "gemm_epilogue.h"
#include "gemm_share.h"
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

// Rows of activations that stay in the second cache while the panels of a thread pass by: at most kRowBlock, and whole
// tiles of every height.
constexpr int64_t kRowBlock = 192, kRowStep = 48, kRowBytes = 512 * 1024;
inline int64_t row_block(int64_t bytes_of_row) {
  const int64_t rows = kRowBytes / bytes_of_row / kRowStep * kRowStep;
  return rows < kRowStep ? kRowStep : smaller(rows, kRowBlock);
}

// Calls body(panel, begin, end), with at most kRowBlock rows, so that all panels meet all rows. Work that takes less
// time than waking a thread stays on the calling one.
template <class Body>
void for_panels(const Layout& layout, int64_t rows, int64_t bytes_of_row, int threads, const Body& body) {
  const int64_t panels = layout.panels(), bytes = panels * layout.panel_bytes(), block = row_block(bytes_of_row);
  const int64_t products = rows * layout.out_features * layout.in_features;
  if (bytes + products / 32 < 4 * kMinBytesPerThread) threads = 1;
  run_team(threads, [&](int thread, int num_threads) {
    const Share share = share_of(panels, rows, thread, num_threads);
    for (int64_t row = share.rows.begin; row < share.rows.end; row += block) {
      const int64_t end = smaller(row + block, share.rows.end);
      for (int64_t panel = share.panels.begin; panel < share.panels.end; ++panel) body(panel, row, end);
    }
  });
}

}  // namespace
