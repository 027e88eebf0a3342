// How the KV cache stores numbers: its 8 bit storage types beside the types of vec.h, and one head's row in any of them.
#pragma once

#include "vec.h"

namespace {

#if defined(__AVX512F__)

inline __m128i load_bytes(const void* p) { return _mm_loadu_si128((const __m128i*)p); }
inline __m128i load_bytes(const void* p, Mask m) { return _mm_maskz_loadu_epi8(m, p); }
inline void store_bytes(void* p, __m128i x) { _mm_storeu_si128((__m128i*)p, x); }
inline void store_bytes(void* p, __m128i x, Mask m) { _mm_mask_storeu_epi8(p, m, x); }
inline Vec widen_f16(__m256i x) { return {_mm512_cvtph_ps(x)}; }
inline Vec widen_i8(__m128i x) { return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(x))}; }
// Nearest integers, ties to even, saturated to 8 bits.
inline __m128i narrow_i8(Vec a) { return _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(a.v)); }

// One step of the conversion to 8 bit floating point: `Mantissa` bits of the mantissa, exponents above -Bias.
template <int Mantissa, int Bias>
inline __m128i narrow_f8(Vec a, float largest) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i sign = _mm512_and_si512(_mm512_srli_epi32(bits, 24), _mm512_set1_epi32(0x80));
  const __m512 size = _mm512_min_ps(_mm512_abs_ps(a.v), _mm512_set1_ps(largest));
  const __m512i wide = _mm512_castps_si512(size);
  constexpr int kDropped = 23 - Mantissa;
  // Normal numbers: a carry out of the mantissa raises the exponent, as it should.
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(wide, kDropped), _mm512_set1_epi32(1));
  const __m512i half = _mm512_set1_epi32((1 << (kDropped - 1)) - 1 - ((127 - Bias) << 23));
  const __m512i normal = _mm512_srli_epi32(_mm512_add_epi32(wide, _mm512_add_epi32(odd, half)), kDropped);
  // Those below the smallest normal one: added to a number whose unit is theirs, they are rounded by the addition.
  const __m512 unit = _mm512_set1_ps(static_cast<float>(1 << (23 - Mantissa)) * (2.f / (1 << Bias)));
  const __m512i small = _mm512_sub_epi32(_mm512_castps_si512(_mm512_add_ps(size, unit)), _mm512_castps_si512(unit));
  const __mmask16 is_small = _mm512_cmp_ps_mask(size, _mm512_set1_ps(2.f / (1 << Bias)), _CMP_LT_OQ);
  const __mmask16 is_nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  __m512i code = _mm512_mask_mov_epi32(normal, is_small, small);
  code = _mm512_mask_mov_epi32(code, is_nan, _mm512_set1_epi32(0x7f));
  return _mm512_cvtepi32_epi8(_mm512_or_si512(code, sign));
}

#else  // AVX2

inline __m128i load_bytes(const void* p) { return _mm_loadu_si128((const __m128i*)p); }
inline __m128i load_bytes(const void* p, Mask m) {
  uint8_t lanes[kLanes] = {};
  for (int i = 0, n = count(m); i < n; ++i) lanes[i] = ((const uint8_t*)p)[i];
  return load_bytes(lanes);
}
inline void store_bytes(void* p, __m128i x) { _mm_storeu_si128((__m128i*)p, x); }
inline void store_bytes(void* p, __m128i x, Mask m) {
  uint8_t lanes[kLanes];
  store_bytes(lanes, x);
  for (int i = 0, n = count(m); i < n; ++i) ((uint8_t*)p)[i] = lanes[i];
}
inline Vec widen_f16(__m256i x) {
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(x)), _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1))};
}
inline Vec widen_i8(__m128i x) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(x, 8)))};
}
// The low bytes of sixteen 32 bit integers, which fit 8 bits.
inline __m128i low_bytes(__m256i lo, __m256i hi) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(lo, hi), 0xd8);
  return _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}
inline __m128i narrow_i8(Vec a) {
  const __m256i lo = _mm256_cvtps_epi32(a.lo), hi = _mm256_cvtps_epi32(a.hi);
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(lo, hi), 0xd8);
  return _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}

template <int Mantissa, int Bias>
inline __m256i narrow_f8(__m256 a, float largest) {
  const __m256i bits = _mm256_castps_si256(a);
  const __m256i sign = _mm256_and_si256(_mm256_srli_epi32(bits, 24), _mm256_set1_epi32(0x80));
  const __m256 size = _mm256_min_ps(_mm256_andnot_ps(_mm256_set1_ps(-0.f), a), _mm256_set1_ps(largest));
  const __m256i wide = _mm256_castps_si256(size);
  constexpr int kDropped = 23 - Mantissa;
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(wide, kDropped), _mm256_set1_epi32(1));
  const __m256i half = _mm256_set1_epi32((1 << (kDropped - 1)) - 1 - ((127 - Bias) << 23));
  const __m256i normal = _mm256_srli_epi32(_mm256_add_epi32(wide, _mm256_add_epi32(odd, half)), kDropped);
  const __m256 unit = _mm256_set1_ps(static_cast<float>(1 << (23 - Mantissa)) * (2.f / (1 << Bias)));
  const __m256i small = _mm256_sub_epi32(_mm256_castps_si256(_mm256_add_ps(size, unit)), _mm256_castps_si256(unit));
  const __m256 is_small = _mm256_cmp_ps(size, _mm256_set1_ps(2.f / (1 << Bias)), _CMP_LT_OQ);
  const __m256 is_nan = _mm256_cmp_ps(a, a, _CMP_UNORD_Q);
  __m256i code = _mm256_blendv_epi8(normal, small, _mm256_castps_si256(is_small));
  code = _mm256_blendv_epi8(code, _mm256_set1_epi32(0x7f), _mm256_castps_si256(is_nan));
  return _mm256_or_si256(code, sign);
}
template <int Mantissa, int Bias>
inline __m128i narrow_f8(Vec a, float largest) {
  return low_bytes(narrow_f8<Mantissa, Bias>(a.lo, largest), narrow_f8<Mantissa, Bias>(a.hi, largest));
}

#endif

// e4m3 without infinities. As a half precision number, the bits of one (moved by 7) are 2^-8 of it: half precision has
// 8 more exponents below, and subnormal numbers in the same place. NaN, all ones, needs a hand.
inline Vec widen_e4m3(__m128i x) {
  const __m256i wide = _mm256_cvtepi8_epi16(x);
  const __m256i size = _mm256_and_si256(wide, _mm256_set1_epi16(0x7f));
  const __m256i nan = _mm256_cmpeq_epi16(size, _mm256_set1_epi16(0x7f));
  const __m256i sign = _mm256_and_si256(wide, _mm256_set1_epi16(static_cast<int16_t>(0x8000)));
  const __m256i half = _mm256_or_si256(_mm256_or_si256(_mm256_slli_epi16(size, 7), sign), _mm256_srli_epi16(nan, 1));
  return widen_f16(half) * splat(256.f);
}

// e5m2: the upper half of a half precision number.
inline Vec widen_e5m2(__m128i x) { return widen_f16(_mm256_slli_epi16(_mm256_cvtepu8_epi16(x), 8)); }

// Storage types like those of vec.h: load and store convert, rounding to nearest even. The 8 bit floating point types
// saturate and keep NaN; `largest` is where.
struct E4M3 {
  using type = uint8_t;
  static constexpr float largest = 448.f;
  static Vec load(const uint8_t* p) { return widen_e4m3(load_bytes(p)); }
  static Vec load(const uint8_t* p, Mask m) { return widen_e4m3(load_bytes(p, m)); }
  static void store(uint8_t* p, Vec x) { store_bytes(p, narrow_f8<3, 7>(x, largest)); }
  static void store(uint8_t* p, Vec x, Mask m) { store_bytes(p, narrow_f8<3, 7>(x, largest), m); }
};
struct E5M2 {
  using type = uint8_t;
  static constexpr float largest = 57344.f;
  static Vec load(const uint8_t* p) { return widen_e5m2(load_bytes(p)); }
  static Vec load(const uint8_t* p, Mask m) { return widen_e5m2(load_bytes(p, m)); }
  static void store(uint8_t* p, Vec x) { store_bytes(p, narrow_f8<2, 15>(x, largest)); }
  static void store(uint8_t* p, Vec x, Mask m) { store_bytes(p, narrow_f8<2, 15>(x, largest), m); }
};
struct I8 {  // whole numbers; the caller keeps them within +-127
  using type = int8_t;
  static constexpr float largest = 127.f;
  static Vec load(const int8_t* p) { return widen_i8(load_bytes(p)); }
  static Vec load(const int8_t* p, Mask m) { return widen_i8(load_bytes(p, m)); }
  static void store(int8_t* p, Vec x) { store_bytes(p, narrow_i8(x)); }
  static void store(int8_t* p, Vec x, Mask m) { store_bytes(p, narrow_i8(x), m); }
};

// Calls body(T()) with the storage type of a cache. Scales come beside it: a cache of i8 always has them, one of e4m3
// may, the others never do; see vllm_kernels/ops/cache.py for what they mean.
template <class Body>
void with_storage(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::bf16: return body(BF16());
    case DType::f16: return body(F16());
    case DType::fp8_e4m3: return body(E4M3());
    case DType::fp8_e5m2: return body(E5M2());
    case DType::i8: return body(I8());
    default: return body(F32());
  }
}

// out[i] = x[i] in storage type T, for one head's [size] entries.
template <class T>
void store_plain(const float* x, typename T::type* out, int64_t size) {
  for_lanes(size, [&](int64_t i, Mask m, bool whole) {
    if (whole)
      T::store(out + i, load(x + i));
    else
      T::store(out + i, load(x + i, m), m);
  });
}

// The same as x / scale, with scale = absmax / T::largest (1 for all zeros; NaN, with entries of zero, where an entry is
// not finite). The quotient is a division, not a product with 1 / scale: every face stores the same bits.
template <class T>
void store_scaled(const float* x, typename T::type* out, float* scale_out, int64_t size) {
  Vec peak = zero(), poison = zero();  // poison: 0, or NaN from a number that is not finite
  for_lanes(size, [&](int64_t i, Mask m, bool whole) {
    const Vec v = whole ? load(x + i) : load(x + i, m);
    peak = max(peak, abs(v));
    poison = fma(v, zero(), poison);
  });
  const float bad = sum(poison);
  float scale = largest(peak) / T::largest;
  if (scale == 0.f) scale = 1.f;
  const bool finite = bad == 0.f;
  *scale_out = finite ? scale : __builtin_nanf("");
  const Vec divisor = splat(scale), low = splat(-T::largest), high = splat(T::largest);
  for_lanes(size, [&](int64_t i, Mask m, bool whole) {
    const Vec v = whole ? load(x + i) : load(x + i, m);
    // A scale below the normal numbers is rounded, so a quotient may be above the largest.
    const Vec entry = finite ? min(max(v / divisor, low), high) : zero();
    if (whole)
      T::store(out + i, entry);
    else
      T::store(out + i, entry, m);
  });
}

}  // namespace
