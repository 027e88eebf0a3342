// Sixteen floats at once, the same for every level: one register with AVX-512, two with AVX2. All kernels are written in
// these, so that one source serves every level.
#pragma once

#include <cstdint>
#include <immintrin.h>

#include "abi.h"

namespace {

constexpr int kLanes = 16;

#if defined(__AVX512F__)

struct Vec {
  __m512 v;
};
using Mask = __mmask16;

inline Vec zero() { return {_mm512_setzero_ps()}; }
inline Vec splat(float x) { return {_mm512_set1_ps(x)}; }
inline Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, Vec x) { _mm512_storeu_ps(p, x.v); }
inline Mask first(int n) { return static_cast<Mask>((1u << n) - 1); }  // the first n lanes, n <= 16
inline Vec load(const float* p, Mask m) { return {_mm512_maskz_loadu_ps(m, p)}; }
inline void store(float* p, Vec x, Mask m) { _mm512_mask_storeu_ps(p, m, x.v); }

inline Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }    // a * b + c
inline Vec fnma(Vec a, Vec b, Vec c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }  // c - a * b
inline Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }  // b where either is NaN
inline Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Vec abs(Vec a) { return {_mm512_abs_ps(a.v)}; }
inline Vec sqrt(Vec a) { return {_mm512_sqrt_ps(a.v)}; }
inline Vec round(Vec a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline Vec times_power_of_2(Vec a, Vec n) { return {_mm512_scalef_ps(a.v, n.v)}; }  // a * 2^n for whole n
inline Mask less(Vec a, Vec b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ); }
inline Vec select(Mask m, Vec yes, Vec no) { return {_mm512_mask_blend_ps(m, no.v, yes.v)}; }
inline float sum(Vec a) { return _mm512_reduce_add_ps(a.v); }
inline float largest(Vec a) { return _mm512_reduce_max_ps(a.v); }

inline Vec widen_bf16(__m256i x) { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16))}; }

// Round to nearest even, NaN stays NaN.
inline __m256i narrow_bf16(Vec a) {
#if defined(__AVX512BF16__)
  return (__m256i)_mm512_cvtneps_pbh(a.v);
#else
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const Mask nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  const __m512i kept = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x00400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16));
#endif
}

inline Vec load_bf16(const uint16_t* p) { return widen_bf16(_mm256_loadu_si256((const __m256i*)p)); }
inline Vec load_bf16(const uint16_t* p, Mask m) { return widen_bf16(_mm256_maskz_loadu_epi16(m, p)); }
inline void store_bf16(uint16_t* p, Vec a) { _mm256_storeu_si256((__m256i*)p, narrow_bf16(a)); }
inline void store_bf16(uint16_t* p, Vec a, Mask m) { _mm256_mask_storeu_epi16(p, m, narrow_bf16(a)); }
#if defined(__AVX512BF16__)
inline void store_bf16(uint16_t* p, Vec a, Vec b) {
  _mm512_storeu_si512((__m512i*)p, (__m512i)_mm512_cvtne2ps_pbh(b.v, a.v));
}
// Both to a line of memory, past the caches.
inline void stream_bf16(uint16_t* p, Vec a, Vec b) {
  _mm512_stream_si512((__m512i*)p, (__m512i)_mm512_cvtne2ps_pbh(b.v, a.v));
}
#endif
inline Vec load_f16(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}; }
inline Vec load_f16(const uint16_t* p, Mask m) { return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(m, p))}; }
inline __m256i narrow_f16(Vec a) { return _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline void store_f16(uint16_t* p, Vec a) { _mm256_storeu_si256((__m256i*)p, narrow_f16(a)); }
inline void store_f16(uint16_t* p, Vec a, Mask m) { _mm256_mask_storeu_epi16(p, m, narrow_f16(a)); }

#else  // AVX2: two registers

struct Vec {
  __m256 lo, hi;
};
struct Mask {
  __m256 lo, hi;
};

inline Vec zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Vec splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Vec load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, Vec x) {
  _mm256_storeu_ps(p, x.lo);
  _mm256_storeu_ps(p + 8, x.hi);
}
inline Mask first(int n) {
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i lo = _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lanes);
  const __m256i hi = _mm256_cmpgt_epi32(_mm256_set1_epi32(n - 8), lanes);
  return {_mm256_castsi256_ps(lo), _mm256_castsi256_ps(hi)};
}
inline Vec load(const float* p, Mask m) {
  return {_mm256_maskload_ps(p, _mm256_castps_si256(m.lo)), _mm256_maskload_ps(p + 8, _mm256_castps_si256(m.hi))};
}
inline void store(float* p, Vec x, Mask m) {
  _mm256_maskstore_ps(p, _mm256_castps_si256(m.lo), x.lo);
  _mm256_maskstore_ps(p + 8, _mm256_castps_si256(m.hi), x.hi);
}

inline Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
inline Vec fma(Vec a, Vec b, Vec c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline Vec fnma(Vec a, Vec b, Vec c) {
  return {_mm256_fnmadd_ps(a.lo, b.lo, c.lo), _mm256_fnmadd_ps(a.hi, b.hi, c.hi)};
}
inline Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
inline Vec abs(Vec a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
inline Vec sqrt(Vec a) { return {_mm256_sqrt_ps(a.lo), _mm256_sqrt_ps(a.hi)}; }
inline Vec round(Vec a) {
  constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.lo, mode), _mm256_round_ps(a.hi, mode)};
}
// In two steps, as 2^n alone would leave the range of floats where the product does not.
inline __m256 times_power_of_2(__m256 a, __m256 n) {
  const __m256i whole = _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(n, _mm256_set1_ps(-252.f)), _mm256_set1_ps(252.f)));
  const __m256i half = _mm256_srai_epi32(whole, 1), rest = _mm256_sub_epi32(whole, half);
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256 one = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
  const __m256 two = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
  return _mm256_mul_ps(_mm256_mul_ps(a, one), two);
}
inline Vec times_power_of_2(Vec a, Vec n) { return {times_power_of_2(a.lo, n.lo), times_power_of_2(a.hi, n.hi)}; }
inline Mask less(Vec a, Vec b) {
  return {_mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ)};
}
inline Vec select(Mask m, Vec yes, Vec no) {
  return {_mm256_blendv_ps(no.lo, yes.lo, m.lo), _mm256_blendv_ps(no.hi, yes.hi, m.hi)};
}
inline float sum(Vec a) {
  const __m256 eight = _mm256_add_ps(a.lo, a.hi);
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
inline float largest(Vec a) {
  const __m256 eight = _mm256_max_ps(a.lo, a.hi);
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

inline __m256 widen_bf16(__m128i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16)); }
inline __m128i narrow_bf16(__m256 a) {
  const __m256i bits = _mm256_castps_si256(a);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x00400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  const __m256i kept = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(kept), _mm256_extracti128_si256(kept, 1));
}
inline Vec load_bf16(const uint16_t* p) {
  return {widen_bf16(_mm_loadu_si128((const __m128i*)p)), widen_bf16(_mm_loadu_si128((const __m128i*)(p + 8)))};
}
inline void store_bf16(uint16_t* p, Vec a) {
  _mm_storeu_si128((__m128i*)p, narrow_bf16(a.lo));
  _mm_storeu_si128((__m128i*)(p + 8), narrow_bf16(a.hi));
}
inline Vec load_f16(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))};
}
inline void store_f16(uint16_t* p, Vec a) {
  constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(a.lo, mode));
  _mm_storeu_si128((__m128i*)(p + 8), _mm256_cvtps_ph(a.hi, mode));
}
// There are no masked moves of 16 bits: the lanes go through memory of their own.
inline int count(Mask m) { return __builtin_popcount(_mm256_movemask_ps(m.lo)) + __builtin_popcount(_mm256_movemask_ps(m.hi)); }
inline void take(uint16_t* to, const uint16_t* from, int n) {
  for (int i = 0; i < n; ++i) to[i] = from[i];
}
inline Vec load_bf16(const uint16_t* p, Mask m) {
  uint16_t lanes[kLanes] = {};
  take(lanes, p, count(m));
  return load_bf16(lanes);
}
inline void store_bf16(uint16_t* p, Vec a, Mask m) {
  uint16_t lanes[kLanes];
  store_bf16(lanes, a);
  take(p, lanes, count(m));
}
inline Vec load_f16(const uint16_t* p, Mask m) {
  uint16_t lanes[kLanes] = {};
  take(lanes, p, count(m));
  return load_f16(lanes);
}
inline void store_f16(uint16_t* p, Vec a, Mask m) {
  uint16_t lanes[kLanes];
  store_f16(lanes, a);
  take(p, lanes, count(m));
}

#endif

// Element types of activations and weights, for templates: T::load and T::store convert to and from floats, with
// rounding to nearest even. A masked load gives 0 in the other lanes; masks are always first(n).
struct F32 {
  using type = float;
  static Vec load(const float* p) { return ::load(p); }
  static Vec load(const float* p, Mask m) { return ::load(p, m); }
  static void store(float* p, Vec x) { ::store(p, x); }
  static void store(float* p, Vec x, Mask m) { ::store(p, x, m); }
};
struct BF16 {
  using type = uint16_t;
  static Vec load(const uint16_t* p) { return load_bf16(p); }
  static Vec load(const uint16_t* p, Mask m) { return load_bf16(p, m); }
  static void store(uint16_t* p, Vec x) { store_bf16(p, x); }
  static void store(uint16_t* p, Vec x, Mask m) { store_bf16(p, x, m); }
};
struct F16 {
  using type = uint16_t;
  static Vec load(const uint16_t* p) { return load_f16(p); }
  static Vec load(const uint16_t* p, Mask m) { return load_f16(p, m); }
  static void store(uint16_t* p, Vec x) { store_f16(p, x); }
  static void store(uint16_t* p, Vec x, Mask m) { store_f16(p, x, m); }
};

// Calls body(T()) with the element type of `dtype`: f32, bf16 or f16, the only ones of activations.
template <class Body>
void with_type(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::bf16: return body(BF16());
    case DType::f16: return body(F16());
    default: return body(F32());
  }
}

// Calls body(offset, mask, whole) over [0, n): whole sixteens first (mask: all lanes), then the rest if there is one.
template <class Body>
inline void for_lanes(int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) body(i, first(kLanes), true);
  if (i < n) body(i, first(static_cast<int>(n - i)), false);
}

// e^x within 2 units in the last place of fp32; 0 below -104, infinity above 89; NaN stays NaN.
inline Vec exp(Vec x) {
  const Vec clipped = min(splat(89.f), max(splat(-104.f), x));  // x stands second: a NaN passes
  // x = n ln 2 + r with |r| <= ln(2) / 2, and a polynomial for e^r (minimax, degree 6; ln 2 in two parts).
  const Vec n = round(clipped * splat(1.44269504f));
  Vec r = fnma(n, splat(0.693359375f), clipped);
  r = fnma(n, splat(-2.12194440e-4f), r);
  Vec p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, r * r, r + splat(1.f));
  return times_power_of_2(p, n);
}

}  // namespace
