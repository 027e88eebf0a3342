// The lanes of sixteen Vecs, added up or compared, for all sixteen at once.
#pragma once

#include "vec.h"

namespace {

#if defined(__AVX512F__)

struct Add {
  __m512 operator()(__m512 a, __m512 b) const { return _mm512_add_ps(a, b); }
};
struct Max {
  __m512 operator()(__m512 a, __m512 b) const { return _mm512_max_ps(a, b); }
};

// Four Vecs -> for each 128 bits of lanes, what each Vec's numbers there come to.
template <class Op>
inline __m512 combine_in_quarters(const Vec (&x)[4], Op op) {
  const __m512 ab = op(_mm512_unpacklo_ps(x[0].v, x[1].v), _mm512_unpackhi_ps(x[0].v, x[1].v));
  const __m512 cd = op(_mm512_unpacklo_ps(x[2].v, x[3].v), _mm512_unpackhi_ps(x[2].v, x[3].v));
  const __m512d lo = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
  const __m512d hi = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
  return op(_mm512_castpd_ps(lo), _mm512_castpd_ps(hi));
}

// Four results of combine_in_quarters -> those of all sixteen Vecs, in order.
template <class Op>
inline Vec combine_quarters(const __m512 (&x)[4], Op op) {
  const __m512 ab = op(_mm512_shuffle_f32x4(x[0], x[1], 0x88), _mm512_shuffle_f32x4(x[0], x[1], 0xdd));
  const __m512 cd = op(_mm512_shuffle_f32x4(x[2], x[3], 0x88), _mm512_shuffle_f32x4(x[2], x[3], 0xdd));
  return {op(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd))};
}

template <class Op>
inline Vec combine_lanes(const Vec (&x)[kLanes], Op op) {
  __m512 quarters[4];
  for (int i = 0; i < 4; ++i) quarters[i] = combine_in_quarters({x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]}, op);
  return combine_quarters(quarters, op);
}

#endif

}  // namespace
