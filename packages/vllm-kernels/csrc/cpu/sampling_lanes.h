// What sampling needs of sixteen floats beyond vec.h: a mask as bits, the search for NaN, compaction, and the ends of
// rows that are no multiple of sixteen.
#pragma once

#include "unroll.h"
#include "vec.h"

namespace {

constexpr float kInfinity = __builtin_inff();

#if defined(__AVX512F__)

inline Mask either(Mask a, Mask b) { return static_cast<Mask>(a | b); }
inline Mask no_lanes() { return 0; }
inline Mask either_nan(Vec a, Vec b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_UNORD_Q); }
inline uint32_t bits(Mask m) { return m; }

// Writes the lanes whose bit is set, in order; may write all of the sixteen places from `to` on.
inline void compact(Vec x, uint32_t bits, float* to) {
  _mm512_storeu_ps(to, _mm512_maskz_compress_ps(static_cast<Mask>(bits), x.v));
}
// Likewise of x[i] = first + i.
inline void compact_count(int32_t first, uint32_t bits, int32_t* to) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i x = _mm512_add_epi32(lanes, _mm512_set1_epi32(first));
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(static_cast<Mask>(bits), x));
}
inline void compact(const int32_t* from, uint32_t bits, int32_t* to) {
  const __m512i x = _mm512_loadu_si512(from);
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(static_cast<Mask>(bits), x));
}

#else

inline Mask either(Mask a, Mask b) { return {_mm256_or_ps(a.lo, b.lo), _mm256_or_ps(a.hi, b.hi)}; }
inline Mask no_lanes() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Mask either_nan(Vec a, Vec b) {
  return {_mm256_cmp_ps(a.lo, b.lo, _CMP_UNORD_Q), _mm256_cmp_ps(a.hi, b.hi, _CMP_UNORD_Q)};
}
inline uint32_t bits(Mask m) {
  return static_cast<uint32_t>(_mm256_movemask_ps(m.lo)) | static_cast<uint32_t>(_mm256_movemask_ps(m.hi)) << 8;
}

// For each mask of eight lanes, the numbers of those whose bit is set, a byte each.
struct LaneNumbers {
  uint64_t of[256];
  constexpr LaneNumbers() : of() {
    for (int mask = 0; mask < 256; ++mask)
      for (int lane = 0, place = 0; lane < 8; ++lane)
        if (mask >> lane & 1) of[mask] |= static_cast<uint64_t>(lane) << 8 * place++;
  }
};
constexpr LaneNumbers kLaneNumbers;

inline void compact(__m256i x, uint32_t bits, void* to) {
  const __m256i order = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(kLaneNumbers.of[bits])));
  _mm256_storeu_si256(static_cast<__m256i*>(to), _mm256_permutevar8x32_epi32(x, order));
}
inline void compact(__m256i lo, __m256i hi, uint32_t bits, int32_t* to) {
  compact(lo, bits & 255, to);
  compact(hi, bits >> 8, to + __builtin_popcount(bits & 255));
}
inline void compact(Vec x, uint32_t bits, float* to) {
  compact(_mm256_castps_si256(x.lo), _mm256_castps_si256(x.hi), bits, reinterpret_cast<int32_t*>(to));
}
inline void compact_count(int32_t first, uint32_t bits, int32_t* to) {
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i x = _mm256_add_epi32(lanes, _mm256_set1_epi32(first));
  compact(x, _mm256_add_epi32(x, _mm256_set1_epi32(8)), bits, to);
}
inline void compact(const int32_t* from, uint32_t bits, int32_t* to) {
  const __m256i* const x = reinterpret_cast<const __m256i*>(from);
  compact(_mm256_loadu_si256(x), _mm256_loadu_si256(x + 1), bits, to);
}

#endif

// The first `count` lanes from p on, -inf in the others.
inline Vec load_or_impossible(const float* p, int count) {
  return select(first(count), load(p, first(count)), splat(-kInfinity));
}

// Calls body(i, x) for each sixteen of [begin, end), the lanes beyond the end being -inf. Write the body as
// [&](int64_t i, Vec x) VLLM_INLINE { ... }: it is called in two places, and what it changes belongs into registers.
template <class Body>
inline void for_logits(const float* row, int64_t begin, int64_t end, const Body& body) {
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) body(i, load(row + i));
  if (i < end) body(i, load_or_impossible(row + i, static_cast<int>(end - i)));
}

}  // namespace
