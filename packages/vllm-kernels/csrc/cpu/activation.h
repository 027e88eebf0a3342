// Activations of sixteen floats. Written so that no digits are lost to a difference of nearly equal numbers: a negative
// input's small result is as precise as a positive one's. Errors are in units of 2^-23 of the result; NaN stays NaN.
#pragma once

#include "vec.h"

namespace {

// x / (1 + e^-y): x times the sigmoid of y.
inline Vec times_sigmoid(Vec x, Vec y) { return x / (splat(1.f) + exp(zero() - y)); }

// x sigmoid(x), within 1.5 units.
inline Vec silu(Vec x) { return times_sigmoid(x, x); }

// x (1 + tanh(u)) / 2 = x sigmoid(2 u) with u = sqrt(2 / pi) (x + 0.044715 x^3), within 6 units for |x| < 3; further
// below, where the rounding of a large u shows, within 50 units down to -8.
inline Vec gelu_tanh(Vec x) {
  return times_sigmoid(x, x * fma(x * x, splat(0.0713548163f), splat(1.59576912f)));
}

// x times the share of the normal distribution below x, within 3.5 units everywhere. With t = |x|, the share beyond t is
// e^(-t^2 / 2) g(t), and g is smooth: a polynomial in s = 1 / (1 + 0.35 t), fitted to 3e-8 of its value up to t = 14.
// What squaring t loses is put back to first order.
inline Vec gelu(Vec x) {
  const Vec t = min(splat(20.f), abs(x));  // nothing is left beyond 14; x stands second: a NaN passes
  const Vec s = splat(1.f) / fma(t, splat(0.35f), splat(1.f));
  Vec g = splat(-0.0291580297f);
  g = fma(g, s, splat(0.144031614f));
  g = fma(g, s, splat(-0.255840391f));
  g = fma(g, s, splat(0.159321249f));
  g = fma(g, s, splat(-0.0232133921f));
  g = fma(g, s, splat(0.105552927f));
  g = fma(g, s, splat(0.119821183f));
  g = fma(g, s, splat(0.139863536f));
  g = fma(g, s, splat(0.139621302f));
  const Vec square = t * t, lost = fma(t, t, zero() - square);
  const Vec beyond = g * s * exp(square * splat(-0.5f));
  return max(zero(), x) - t * fma(beyond * splat(-0.5f), lost, beyond);
}

inline Vec relu(Vec x) { return max(zero(), x); }

// The gate of gpt-oss: x sigmoid(1.702 x) (y + 1), with x at most 7, and y from -7 to 7. Bounds stand first: a NaN
// passes.
inline Vec swigluoai(Vec x, Vec y) {
  x = min(splat(7.f), x);
  return times_sigmoid(x, x * splat(1.702f)) * (max(splat(-7.f), min(splat(7.f), y)) + splat(1.f));
}

}  // namespace
