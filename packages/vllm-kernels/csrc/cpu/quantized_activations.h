// Activations as bytes: what meets the bytes of a quantised weight.
#pragma once

#include "quantized_ints.h"
#include "quantized_layout.h"

namespace {

// Rows of activations in pieces of `piece` columns. Bytes beyond in_features are 0, up to the next multiple of 16.
struct Activations {
  int8_t* q;       // [rows][stride]
  float* scales;   // [rows][pieces]: what 1 stands for
  int32_t* sums;   // [rows][pieces]: two numbers of 16 bits whose sum is minus the sum of the piece
  int64_t stride, piece, pieces;
};

// Bytes from row to row of `q`. The 64 more keep rows of 4096 columns out of the same sets of the cache.
inline int64_t activation_stride(int64_t in_features) { return round_up(in_features, 64) + 64; }

// Divides a buffer of rows * (activation_stride + 8 * pieces) bytes.
inline Activations activations_in(void* buffer, int64_t rows, int64_t in_features, int64_t piece) {
  const int64_t pieces = (in_features + piece - 1) / piece, stride = activation_stride(in_features);
  int8_t* q = static_cast<int8_t*>(buffer);
  float* scales = reinterpret_cast<float*>(q + rows * stride);
  return {q, scales, reinterpret_cast<int32_t*>(scales + rows * pieces), stride, piece, pieces};
}

// Chunks whose greatest number is less than this count as 0: 127 divided by it must be a float.
constexpr float kTiny = 1e-30f;

// For each piece: scale = max|x| / 127, q = round(x * (127 / max|x|)). A piece with a NaN gets the scale NaN.
template <class T>
void quantize_activations(const typename T::type* x, int64_t in_features, const Activations& to, int64_t row) {
  const Ints magnitude = splat_ints(0x7fffffff);
  for (int64_t i = 0; i < to.pieces; ++i) {
    const int64_t begin = i * to.piece, columns = smaller(to.piece, in_features - begin);
    // As integers, magnitudes are in the same order, and NaN is above all of them.
    Ints peak_bits = zero_ints();
    for_lanes(columns, [&](int64_t k, Mask mask, bool whole) {
      const Vec v = whole ? T::load(x + begin + k) : T::load(x + begin + k, mask);
      peak_bits = max(peak_bits, bits_of(v) & magnitude);
    });
    const int32_t peak_int = largest(peak_bits);
    float peak;
    std::memcpy(&peak, &peak_int, sizeof(peak));
    if (peak < kTiny) peak = 0.f;
    const Vec units = splat(peak == 0.f ? 0.f : 127.f / peak);
    Ints total = zero_ints();
    int8_t* q = to.q + row * to.stride + begin;
    for_lanes(columns, [&](int64_t k, Mask mask, bool whole) {
      const Vec v = whole ? T::load(x + begin + k) : T::load(x + begin + k, mask);
      const Ints n = to_ints(v * units);
      total = total + n;
      store_i8(q + k, n);
    });
    const int32_t minus = static_cast<int32_t>(0u - static_cast<uint32_t>(sum(total)));
    const int32_t half = minus >> 1, other = minus - half;
    to.scales[row * to.pieces + i] = peak / 127.f;
    to.sums[row * to.pieces + i] = static_cast<int32_t>(static_cast<uint32_t>(half & 0xffff) |
                                                        static_cast<uint32_t>(other & 0xffff) << 16);
  }
}

}  // namespace
