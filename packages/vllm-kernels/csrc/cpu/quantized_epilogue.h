// What happens to a tile of sums of a quantised product before it is stored.
#pragma once

#include "quantized_layout.h"
#include "vec.h"

namespace {

enum class Gate : int32_t { none = 0, silu = 1, gelu = 2, gelu_tanh = 3 };

inline Vec sigmoid(Vec x) { return splat(1.f) / (splat(1.f) + exp(zero() - x)); }

// The share of the normal distribution below x, within 1e-7: erfc as t P(t) e^(-z^2), z = |x| / sqrt 2, t = 1 / (1 + p z)
// (Abramowitz and Stegun 7.1.26).
inline Vec normal_below(Vec x) {
  const Vec z = abs(x) * splat(0.70710678f);
  const Vec t = splat(1.f) / fma(z, splat(0.3275911f), splat(1.f));
  Vec p = splat(1.061405429f);
  p = fma(p, t, splat(-1.453152027f));
  p = fma(p, t, splat(1.421413741f));
  p = fma(p, t, splat(-0.284496736f));
  p = fma(p, t, splat(0.254829592f));
  const Vec tail = splat(0.5f) * p * t * exp(zero() - z * z);
  return select(less(x, zero()), tail, splat(1.f) - tail);
}

inline Vec activate(Gate gate, Vec x) {
  switch (gate) {
    case Gate::silu: return x * sigmoid(x);
    case Gate::gelu: return x * normal_below(x);
    // tanh form: 0.5 x (1 + tanh y) = x sigmoid(2 y)
    default: return x * sigmoid(splat(1.59576912f) * fma(x * x * x, splat(0.044715f), x));
  }
}

// Where a product goes and what is added to it; null pointers for what is not there.
struct Epilogue {
  const float* factors;  // [panels][64], the weight's
  const void* bias;      // [out_features], as the weight's rows are numbered
  const void* residual;  // [rows][results]
  void* out;             // [rows][results]
  DType dtype;           // of bias and residual
  DType out_dtype;
  Gate gate;             // not none: the weight is gated
};

template <class T, class Out>
void finish_tile(const Epilogue& e, const Layout& layout, int64_t panel, int64_t row, int rows, const float* sums) {
  const int64_t width = layout.results(), column = panel * layout.rows_of_panel();
  const int64_t columns = smaller(layout.rows_of_panel(), width - column);
  const auto* bias = static_cast<const typename T::type*>(e.bias);
  const auto* residual = static_cast<const typename T::type*>(e.residual);
  for (int r = 0; r < rows; ++r) {
    auto* out = static_cast<typename Out::type*>(e.out) + (row + r) * width + column;
    const auto* added = residual ? residual + (row + r) * width + column : nullptr;
    for_lanes(columns, [&](int64_t i, Mask mask, bool whole) {
      const auto read = [&](const typename T::type* p) { return whole ? T::load(p + i) : T::load(p + i, mask); };
      const auto sum_of = [&](int64_t lane, int64_t first_row) {
        const Vec sum = load(sums + r * kPanel + lane + i) * load(e.factors + panel * kPanel + lane + i);
        return bias ? sum + read(bias + first_row) : sum;
      };
      Vec result = sum_of(0, column);
      if (e.gate != Gate::none) result = activate(e.gate, result) * sum_of(kGate, width + column);
      if (added) result = result + read(added);
      if (whole)
        Out::store(out + i, result);
      else
        Out::store(out + i, result, mask);
    });
  }
}

// Stores rows [row, row + rows) of the product at the columns of a panel; sums [rows][64].
inline void finish(const Epilogue& e, const Layout& layout, int64_t panel, int64_t row, int rows, const float* sums) {
  with_type(e.dtype, [&](auto type) {
    using T = decltype(type);
    if (e.out_dtype == e.dtype)
      finish_tile<T, T>(e, layout, panel, row, rows, sums);
    else
      finish_tile<T, F32>(e, layout, panel, row, rows, sums);
  });
}

}  // namespace
