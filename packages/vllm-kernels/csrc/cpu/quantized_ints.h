// Sixteen int32, or sixteen times four bytes, at once: the integer side of vec.h, and dot products of bytes.
#pragma once

#include <cstring>

#include "vec.h"

namespace {

inline int32_t load_i32(const void* p) {
  int32_t x;
  std::memcpy(&x, p, sizeof(x));
  return x;
}

// The sum of eight, modulo 2^32: every number that is made of a NaN is -2^31.
inline int32_t wrapped_sum(__m256i eight) {
  __m128i x = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  x = _mm_add_epi32(x, _mm_shuffle_epi32(x, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(x, _mm_shuffle_epi32(x, 0xb1)));
}

#if defined(__AVX512F__)

struct Ints {
  __m512i v;
};

inline Ints zero_ints() { return {_mm512_setzero_si512()}; }
inline Ints splat_ints(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline Ints load_ints(const void* p) { return {_mm512_loadu_si512(p)}; }
inline void store_ints(void* p, Ints x) { _mm512_storeu_si512(p, x.v); }
inline Ints operator+(Ints a, Ints b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline Ints operator&(Ints a, Ints b) { return {_mm512_and_si512(a.v, b.v)}; }
inline Ints operator|(Ints a, Ints b) { return {_mm512_or_si512(a.v, b.v)}; }
template <int n>
inline Ints up(Ints a) { return {_mm512_slli_epi32(a.v, n)}; }
template <int n>
inline Ints down(Ints a) { return {_mm512_srli_epi32(a.v, n)}; }
template <int n>
inline Ints up16(Ints a) { return {_mm512_slli_epi16(a.v, n)}; }
template <int n>
inline Ints down16(Ints a) { return {_mm512_srli_epi16(a.v, n)}; }
template <int n>
inline Ints signed_down16(Ints a) { return {_mm512_srai_epi16(a.v, n)}; }
inline Ints max(Ints a, Ints b) { return {_mm512_max_epi32(a.v, b.v)}; }
inline int32_t sum(Ints a) {
  return wrapped_sum(_mm256_add_epi32(_mm512_castsi512_si256(a.v), _mm512_extracti64x4_epi64(a.v, 1)));
}
inline int32_t largest(Ints a) { return _mm512_reduce_max_epi32(a.v); }
inline Vec to_floats(Ints a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline Ints to_ints(Vec a) { return {_mm512_cvtps_epi32(a.v)}; }  // to nearest even
inline Ints bits_of(Vec a) { return {_mm512_castps_si512(a.v)}; }
inline Vec floats_of(Ints a) { return {_mm512_castsi512_ps(a.v)}; }
inline Ints widen_u8(const uint8_t* p) { return {_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p))}; }
inline void store_i8(int8_t* p, Ints x) { _mm_storeu_si128((__m128i*)p, _mm512_cvtsepi32_epi8(x.v)); }  // saturates
inline void store_u8(uint8_t* p, Ints x) { _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(x.v)); }  // of [0, 255]
// Sums of two products of 16 bits, and of four where neither pair's sum of unsigned times signed bytes passes 16 bits.
inline Ints dot_pairs(Ints a, Ints b) { return {_mm512_madd_epi16(a.v, b.v)}; }
inline Ints dot_small(Ints u, Ints s) {
  return {_mm512_madd_epi16(_mm512_maddubs_epi16(u.v, s.v), _mm512_set1_epi16(1))};
}

#else

struct Ints {
  __m256i lo, hi;
};

inline Ints zero_ints() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline Ints splat_ints(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline Ints load_ints(const void* p) {
  const __m256i* halves = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(halves), _mm256_loadu_si256(halves + 1)};
}
inline void store_ints(void* p, Ints x) {
  __m256i* halves = static_cast<__m256i*>(p);
  _mm256_storeu_si256(halves, x.lo);
  _mm256_storeu_si256(halves + 1, x.hi);
}
inline Ints operator+(Ints a, Ints b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
inline Ints operator&(Ints a, Ints b) { return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)}; }
inline Ints operator|(Ints a, Ints b) { return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)}; }
template <int n>
inline Ints up(Ints a) { return {_mm256_slli_epi32(a.lo, n), _mm256_slli_epi32(a.hi, n)}; }
template <int n>
inline Ints down(Ints a) { return {_mm256_srli_epi32(a.lo, n), _mm256_srli_epi32(a.hi, n)}; }
template <int n>
inline Ints up16(Ints a) { return {_mm256_slli_epi16(a.lo, n), _mm256_slli_epi16(a.hi, n)}; }
template <int n>
inline Ints down16(Ints a) { return {_mm256_srli_epi16(a.lo, n), _mm256_srli_epi16(a.hi, n)}; }
template <int n>
inline Ints signed_down16(Ints a) { return {_mm256_srai_epi16(a.lo, n), _mm256_srai_epi16(a.hi, n)}; }
inline Ints max(Ints a, Ints b) { return {_mm256_max_epi32(a.lo, b.lo), _mm256_max_epi32(a.hi, b.hi)}; }
inline int32_t sum(Ints a) { return wrapped_sum(_mm256_add_epi32(a.lo, a.hi)); }
inline int32_t largest(Ints a) {
  int32_t lanes[kLanes];
  store_ints(lanes, a);
  int32_t result = lanes[0];
  for (int i = 1; i < kLanes; ++i) result = lanes[i] > result ? lanes[i] : result;
  return result;
}
inline Vec to_floats(Ints a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
inline Ints to_ints(Vec a) { return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)}; }
inline Ints bits_of(Vec a) { return {_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)}; }
inline Vec floats_of(Ints a) { return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)}; }
inline Ints widen_u8(const uint8_t* p) {
  const __m128i bytes = _mm_loadu_si128((const __m128i*)p);
  return {_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))};
}
// Sixteen numbers of 16 bits, saturated, in order.
inline __m256i narrow_i16(Ints x) { return _mm256_permute4x64_epi64(_mm256_packs_epi32(x.lo, x.hi), 0xd8); }
inline void store_i8(int8_t* p, Ints x) {
  const __m256i words = narrow_i16(x);
  _mm_storeu_si128((__m128i*)p, _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
inline void store_u8(uint8_t* p, Ints x) {
  const __m256i words = narrow_i16(x);
  _mm_storeu_si128((__m128i*)p, _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
inline Ints dot_pairs(Ints a, Ints b) { return {_mm256_madd_epi16(a.lo, b.lo), _mm256_madd_epi16(a.hi, b.hi)}; }
inline Ints dot_small(Ints u, Ints s) {
  const __m256i one = _mm256_set1_epi16(1);
  return {_mm256_madd_epi16(_mm256_maddubs_epi16(u.lo, s.lo), one),
          _mm256_madd_epi16(_mm256_maddubs_epi16(u.hi, s.hi), one)};
}

#endif

// sum + a . b, with pairs of 16 bits.
inline Ints add_dot_pairs(Ints sum, Ints a, Ints b) {
#if defined(__AVX512VNNI__)
  return {_mm512_dpwssd_epi32(sum.v, a.v, b.v)};
#else
  return sum + dot_pairs(a, b);
#endif
}

// Dot products of four unsigned bytes of a weight with four signed ones of activations, exact in int32. What both sides
// need before is done once for each: weights() for many rows of activations, activations() for many lanes.
// kFour: the weights are below 16.
template <bool kFour>
struct Dot {
#if defined(__AVX512VNNI__)
  using Weights = Ints;
  using Activations = Ints;
  static Weights weights(Ints bytes) { return bytes; }
  static Activations activations(int32_t four) { return splat_ints(four); }
  static Ints add(Ints sum, Weights w, Activations a) { return {_mm512_dpbusd_epi32(sum.v, w.v, a.v)}; }
#else
  // The instruction for bytes stops at the ends of 16 bits, which two products of 8 bits pass: bytes 0 and 2, and bytes
  // 1 and 3, become numbers of 16 bits.
  struct Weights {
    Ints even, odd;
  };
  using Activations = Weights;
  static Weights weights(Ints bytes) { return {bytes & splat_ints(0x00ff00ff), down16<8>(bytes)}; }
  static Activations activations(int32_t four) {
    const Ints bytes = splat_ints(four);
    return {signed_down16<8>(up16<8>(bytes)), signed_down16<8>(bytes)};
  }
  static Ints add(Ints sum, Weights w, Activations a) {
    return sum + (dot_pairs(w.even, a.even) + dot_pairs(w.odd, a.odd));
  }
#endif
};

#if !defined(__AVX512VNNI__)
template <>
struct Dot<true> {
  using Weights = Ints;
  using Activations = Ints;
  static Weights weights(Ints bytes) { return bytes; }
  static Activations activations(int32_t four) { return splat_ints(four); }
  static Ints add(Ints sum, Weights w, Activations a) { return sum + dot_small(w, a); }
};
#endif

}  // namespace
