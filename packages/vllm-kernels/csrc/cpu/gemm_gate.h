// Activations of gated projections, in fp32.
#pragma once

#include "vec.h"

namespace {

enum class Gate : int32_t { none = 0, silu = 1, gelu = 2, gelu_tanh = 3 };

inline Vec negative(Vec x) { return splat(0.f) - x; }

// x / (1 + e^-y)
inline Vec times_sigmoid(Vec x, Vec y) { return x / (splat(1.f) + exp(negative(y))); }

// (1 + tanh(u)) / 2 = sigmoid(2 u) with u = sqrt(2 / pi) (x + 0.044715 x^3)
inline Vec gelu_tanh(Vec x) {
  return times_sigmoid(x, x * fma(x * x, splat(0.0713548162726f), splat(1.59576912161f)));
}

// erfc(z) = t exp(p(t) - z^2), t = 1 / (1 + z / 2), for z >= 0: p is a minimax fit of degree 9 with a relative error of
// erfc of 5e-8. The complement keeps its digits where 1 + erf of a negative x would have lost them.
inline Vec gelu(Vec x) {
  const Vec z = abs(x) * splat(0.70710678f), t = splat(1.f) / fma(z, splat(0.5f), splat(1.f));
  Vec p = splat(0.148838677f);
  p = fma(p, t, splat(-0.702406018f));
  p = fma(p, t, splat(1.20830532f));
  p = fma(p, t, splat(-0.766093401f));
  p = fma(p, t, splat(-0.0213886811f));
  p = fma(p, t, splat(-0.03069142f));
  p = fma(p, t, splat(0.0457237938f));
  p = fma(p, t, splat(0.384257022f));
  p = fma(p, t, splat(0.998917079f));
  p = fma(p, t, splat(-1.26546232f));
  const Vec half_tail = splat(0.5f) * t * exp(fnma(z, z, p));  // of the normal distribution, beyond |x|
  return x * select(less(x, zero()), half_tail, splat(1.f) - half_tail);
}

inline Vec activate(Gate gate, Vec x) {
  switch (gate) {
    case Gate::silu: return times_sigmoid(x, x);
    case Gate::gelu: return gelu(x);
    case Gate::gelu_tanh: return gelu_tanh(x);
    default: return x;
  }
}

}  // namespace
