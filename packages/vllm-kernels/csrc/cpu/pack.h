// The layout of packed weights, the same for every level, so that a weight is packed once whatever multiplies it.
//
// Output columns (rows of W) stand in panels of 64; a panel is a sequence of steps of 256 bytes along K:
//   bf16: [K/2][64][2]  two neighbours along K side by side, as VDPBF16PS and the AMX tiles (16 pairs x 16 columns,
//                       256 bytes apart) want them
//   f16:  [K][64]       two k a step
//   f32:  [K][64]       one k a step
// K is padded to a multiple of 32 and N to whole panels, both with zeros. A gated weight has 32 columns of the gate and
// then the 32 columns of the value that belong to them in each panel, so that one epilogue sees both.
#pragma once

#include "abi.h"
#include "vec.h"

namespace {

constexpr int kPanel = 64;        // columns
constexpr int kStepBytes = 256;   // of a panel, for one step along K
constexpr int kHalfPanel = 32;    // columns of the gate, and of the value
constexpr int64_t kPaddedK = 32;  // K is padded to a multiple

// What the Python side keeps for each weight.
struct Weight {
  const uint8_t* data;
  int64_t n, k;  // rows (gate and value together) and columns of W, without padding
  int32_t dtype;
  int32_t gated;
};

inline int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }
inline int bytes_of(DType dtype) { return dtype == DType::f32 ? 4 : 2; }
inline int64_t panels_of(const Weight& w) {
  return w.gated ? (w.n / 2 + kHalfPanel - 1) / kHalfPanel : (w.n + kPanel - 1) / kPanel;
}
inline int64_t panel_bytes(const Weight& w) { return round_up(w.k, kPaddedK) * kPanel * bytes_of(DType(w.dtype)); }

// Where a row of W stands: its panel and its column there, and how many of the next rows are its neighbours.
struct Place {
  int64_t panel;
  int column, run;
};
inline Place place_of(const Weight& w, int64_t row) {
  if (!w.gated) return {row / kPanel, static_cast<int>(row % kPanel), static_cast<int>(kPanel - row % kPanel)};
  const int64_t half = w.n / 2, r = row < half ? row : row - half, left = half - r;
  const int column = r % kHalfPanel, run = kHalfPanel - column;
  return {r / kHalfPanel, column + (row < half ? 0 : kHalfPanel), static_cast<int>(left < run ? left : run)};
}

// One number from one type to another, to nearest even.
inline float widen(float x, F32) { return x; }
inline float widen(uint16_t x, F16) { return _cvtsh_ss(x); }
inline float widen(uint16_t x, BF16) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}
inline float narrow(float x, F32) { return x; }
inline uint16_t narrow(float x, F16) { return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline uint16_t narrow(float x, BF16) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
template <class From, class To>
inline typename To::type convert(typename From::type x) {
  return narrow(widen(x, From()), To());
}
template <>
inline uint16_t convert<BF16, BF16>(uint16_t x) { return x; }
template <>
inline uint16_t convert<F16, F16>(uint16_t x) { return x; }

// Where element (k, column) of a panel is, in elements: k in the outer part, its parity inside for bf16.
template <class T>
inline int64_t offset_in_panel(int64_t k, int column) { return k * kPanel + column; }
template <>
inline int64_t offset_in_panel<BF16>(int64_t k, int column) { return (k >> 1) * 2 * kPanel + column * 2 + (k & 1); }

}  // namespace
