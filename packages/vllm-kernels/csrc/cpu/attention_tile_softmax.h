// Scores of a strip of query rows with all keys of a split that they see -> weights, sixteen rows at once: no key comes
// later, so that nothing which was summed has to be scaled again.
#pragma once

#include "attention_lanes.h"
#include "attention_softmax.h"
#include "attention_tile.h"
#include "unroll.h"

namespace {

// Sixteen rows of a strip, and what they see of a split's keys: columns [from, to) of the scores.
struct StripRows {
  const int32_t *from, *to;  // [16]
  const int32_t* positions;  // [16] of their tokens; for ALiBi, as are
  const float* slopes;       // [16] or null, and
  int32_t begin;             // the position of column 0
};

constexpr float kLog2e = 1.44269504f;

// 2^x within 1e-4 of itself, which weights are rounded twenty times more roughly than; 0 for -infinity.
inline __m512 exp2(__m512 x) {
  const __m512 f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);  // x less the whole number below
  // Minimax of the relative error on [0, 1] of those that are exact at both ends.
  __m512 p = _mm512_set1_ps(0.0782679692f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.2263076752f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.6954243183f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.f));
  return _mm512_scalef_ps(p, x);  // which takes the whole number below x
}

// Products q . k -> scores, where they are more than a multiple of one another. key_scales [columns] or null.
inline void adjust_row(float* scores, int columns, const StripRows& rows, int r, const ScoreRule& rule,
                       const float* key_scales) {
  for (int i = 0; i < columns; i += kLanes) {
    Vec x = load(scores + i) * splat(rule.scale);
    if (key_scales) x = x * load(key_scales + i);
    if (rule.soft_cap != 0.f) x = splat(rule.soft_cap) * tanh(x / splat(rule.soft_cap));
    if (rows.slopes) {
      const float distance = static_cast<float>(rows.begin + i - rows.positions[r]);
      x = fma(splat(rows.slopes[r]), lane_numbers() + splat(distance), x);
    }
    store(scores + i, x);
  }
}

// Calls body(column, mask of what the row sees of sixteen, of the next sixteen) for each 32 of `columns`.
template <bool masked, class Body>
VLLM_INLINE inline void for_each_32(const StripRows& rows, int r, int columns, const Body& body) {
  const __m512i from = _mm512_set1_epi32(rows.from[r]), to = _mm512_set1_epi32(rows.to[r]);
  __m512i at = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (int column = 0; column < columns; column += kTilePair) {
    Mask seen[2] = {0xffff, 0xffff};
    if (masked)
      for (Mask& mask : seen) {
        mask = _mm512_mask_cmpge_epi32_mask(_mm512_cmplt_epi32_mask(at, to), at, from);
        at = _mm512_add_epi32(at, _mm512_set1_epi32(kLanes));
      }
    body(column, seen);
  }
}

// scores [16][stride] with `columns` keys, a multiple of 32 -> weights as bf16 in the memory of their rows, zeros where a
// row does not see a key. Not `masked`: all rows see all of them; `adjusted`: see adjust_row. key_scales, value_scales
// [columns] or null. largest, total [16]: the rows' largest scores and sums of weights.
//
// For a microsecond after a product of tiles, most instructions on 64 bytes of floats go to one port of the processor
// instead of two; additions, integers and shuffles do not. That is why there are no more of the former than must be.
template <bool masked>
__attribute__((noinline)) void weigh_rows(float* scores, int64_t stride, int columns, const StripRows& rows,
                                          const ScoreRule& rule, bool adjusted, const float* key_scales,
                                          const float* value_scales, float* largest, float* total) {
  const float unit = adjusted ? 1.f : rule.scale;
  Vec of_rows[kLanes];
  for (int r = 0; r < kLanes; ++r) {
    float* const row = scores + r * stride;
    if (adjusted) adjust_row(row, columns, rows, r, rule, key_scales);
    __m512 top[2] = {_mm512_set1_ps(kLowest), _mm512_set1_ps(kLowest)};
    for_each_32<masked>(rows, r, columns, [&](int i, const Mask* seen) VLLM_INLINE {
      for (int k = 0; k < 2; ++k)  // a NaN, as the first operand, does not become the largest: it comes out of exp2
        top[k] = _mm512_mask_max_ps(top[k], seen[k], load(row + i + k * kLanes).v, top[k]);
    });
    of_rows[r].v = _mm512_max_ps(top[0], top[1]);
  }
  const Vec top = combine_lanes(of_rows, Max()) * splat(unit);
  const Vec shift = select(less(top, splat(-3e38f)), zero(), top);  // -infinity: nothing visible
  store(largest, top);
  alignas(64) float shifts[kLanes];
  store(shifts, shift * splat(kLog2e));
  const __m512 factor = _mm512_set1_ps(unit * kLog2e);
  for (int r = 0; r < kLanes; ++r) {
    float* const row = scores + r * stride;
    uint16_t* const weights = (uint16_t*)row;  // behind the scores that are read
    const __m512 shift_of_row = _mm512_set1_ps(shifts[r]);
    Vec sums[2] = {zero(), zero()};
    for_each_32<masked>(rows, r, columns, [&](int i, const Mask* seen) VLLM_INLINE {
      Vec weight[2];
      for (int k = 0; k < 2; ++k) {
        const __m512 x = exp2(_mm512_fmsub_ps(load(row + i + k * kLanes).v, factor, shift_of_row));
        weight[k].v = _mm512_maskz_mov_ps(seen[k], x);
        if (value_scales) {
          sums[k] = sums[k] + weight[k];
          weight[k].v = _mm512_maskz_mul_ps(seen[k], weight[k].v, load(value_scales + i + k * kLanes).v);
        }
      }
      const __m512i pairs = (__m512i)_mm512_cvtne2ps_pbh(weight[1].v, weight[0].v);
      if (!value_scales) {  // summed as rounded, so that they add up to 1
        sums[0].v = sums[0].v + _mm512_castsi512_ps(_mm512_unpacklo_epi16(_mm512_setzero_si512(), pairs));
        sums[1].v = sums[1].v + _mm512_castsi512_ps(_mm512_unpackhi_epi16(_mm512_setzero_si512(), pairs));
      }
      _mm512_storeu_si512(weights + i, pairs);
    });
    of_rows[r] = sums[0] + sums[1];
  }
  store(total, combine_lanes(of_rows, Add()));
}

}  // namespace
