// What happens to the sums of a panel on their way out: bias, residual, gate; then one rounding.
#pragma once

#include <type_traits>

#include "gemm_gate.h"
#include "pack.h"

namespace {

struct Output {
  void* data;            // [rows, columns] of `out_dtype`, contiguous
  const void* bias;      // [n] of `dtype`, or null
  const void* residual;  // [rows, columns] of `dtype`, rows `residual_stride` elements apart, or null
  int64_t residual_stride;
  int64_t columns;  // n, or n / 2 with a gate
  DType dtype;      // of the activations
  DType out_dtype;  // the same, or f32
  Gate gate;
  bool streamed = false;  // past the caches: `data` begins at a line and rows fill whole ones
};

template <class T, class Out>
void finish(const Output& out, const float* c, int rows, int64_t row, int64_t panel) {
  using E = typename T::type;
  const bool gated = out.gate != Gate::none;
  const int width = gated ? kHalfPanel : kPanel;
  const int64_t column = panel * width, left = out.columns - column;
  const E* bias = (const E*)out.bias;
  for (int r = 0; r < rows; ++r, c += kPanel) {
    typename Out::type* to = (typename Out::type*)out.data + (row + r) * out.columns + column;
    const E* residual = out.residual ? (const E*)out.residual + (row + r) * out.residual_stride + column : nullptr;
    for_lanes(left < width ? left : width, [&](int64_t i, Mask m, bool whole) {
      const auto fetch = [&](const E* p) { return whole ? T::load(p) : T::load(p, m); };
      Vec x = load(c + i);
      if (bias) x = x + fetch(bias + column + i);
      if (gated) {
        Vec value = load(c + kHalfPanel + i);
        if (bias) value = value + fetch(bias + out.columns + column + i);
        x = apply(out.gate, x, value);
      }
      if (residual) x = x + fetch(residual + i);
      if (whole)
        Out::store(to + i, x);
      else
        Out::store(to + i, x, m);
    });
  }
}

// The same for what most products are: whole panels, and at most a residual to add.
template <class T>
void finish_whole(const Output& out, const float* c, int rows, int64_t row, int64_t panel) {
  using E = typename T::type;
  const int width = out.gate == Gate::none ? kPanel : kHalfPanel;
  E* to = (E*)out.data + row * out.columns + panel * width;
  const auto each = [&](const auto& value) {
    for (int r = 0; r < rows; ++r, c += kPanel, to += out.columns) {
#if defined(__AVX512BF16__)
      if constexpr (std::is_same_v<T, BF16>)
        if (out.streamed) {
          for (int i = 0; i < width; i += 2 * kLanes)
            stream_bf16(to + i, value(c + i, r, i), value(c + i + kLanes, r, i + kLanes));
          continue;
        }
#endif
      for (int i = 0; i < width; i += kLanes) T::store(to + i, value(c + i, r, i));
    }
  };
  if (out.gate == Gate::silu)
    return each([](const float* x, int, int) { return apply(Gate::silu, load(x), load(x + kHalfPanel)); });
  if (out.gate != Gate::none)
    return each([&](const float* x, int, int) { return apply(out.gate, load(x), load(x + kHalfPanel)); });
  if (!out.residual) return each([](const float* x, int, int) { return load(x); });
  const E* residual = (const E*)out.residual + row * out.residual_stride + panel * width;
  each([&](const float* x, int r, int i) { return load(x) + T::load(residual + r * out.residual_stride + i); });
}

// Writes rows [row, row + rows) of a panel, of which c [rows, 64] has the sums.
inline void finish(const Output& out, const float* c, int rows, int64_t row, int64_t panel) {
  with_type(out.dtype, [&](auto type) {
    using T = decltype(type);
    const bool gated = out.gate != Gate::none;
    const bool whole = (panel + 1) * (gated ? kHalfPanel : kPanel) <= out.columns;
    if (whole && !out.bias && !(gated && out.residual) && out.out_dtype == out.dtype)
      finish_whole<T>(out, c, rows, row, panel);
    else if (out.out_dtype == out.dtype)
      finish<T, T>(out, c, rows, row, panel);
    else
      finish<T, F32>(out, c, rows, row, panel);
  });
}

}  // namespace
