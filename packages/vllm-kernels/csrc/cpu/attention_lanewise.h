// Scores of few query rows without a transposition: each lane sums its own part of head_dim, and the lanes of sixteen
// keys are added up at once. That takes half the time of direct_scores() or less, but it is not the order of sums of
// packed keys, and so only for steps whose sums may depend on how many new tokens a sequence has.
#pragma once

#include "attention_lanes.h"
#include "attention_pack.h"
#include "unroll.h"

namespace {

#if defined(__AVX512F__)

// sums [R][4] += query [R][units] times four keys at rows, of `N` Vecs of units from entry `from` on.
template <class Units, class Format, int R, int N>
VLLM_INLINE inline void add_products(const void* const* rows, int from, int head_dim, const float* query, int units,
                                     Vec (&sums)[R][4]) {
  using E = typename Format::type;
  const float* part = query + from / Units::kPerUnit;
  unrolled<4>([&](int k) VLLM_INLINE {
    Vec x[N];
#if defined(__AVX512BF16__)
    if constexpr (N == 2) {
      __m512i first, last;
      words_of_64<Format>((const E*)rows[k] + from, first, last);
      x[0].v = _mm512_castsi512_ps(first), x[1].v = _mm512_castsi512_ps(last);
    }
#endif
    if constexpr (N == 1) x[0] = load_units<Units, Format>((const E*)rows[k], from, head_dim);
    unrolled<N>([&](int n) VLLM_INLINE {
      unrolled<R>([&](int r) VLLM_INLINE {
        sums[r][k] = Units::multiply_add(load(part + r * units + n * kLanes), x[n], sums[r][k]);
      });
    });
  });
}

// As direct_scores().
template <class Units, class Format, int R>
void lanewise_scores(const void* const* rows, const void* const* next, int begin, int end, int head_dim,
                     const float* query, float* scores) {
  constexpr int step = kLanes * Units::kPerUnit, kBytes = sizeof(typename Format::type);
  const int units = padded_dim<Units>(head_dim) / Units::kPerUnit;
  for (int g = begin; g < end; ++g) {
    __m512 quarters[R][4];
    for (int quad = 0; quad < 4; ++quad) {
      const int first = g * kLanes + 4 * quad;
      Vec sums[R][4];
      unrolled<R>([&](int r) VLLM_INLINE { unrolled<4>([&](int k) VLLM_INLINE { sums[r][k] = zero(); }); });
      int from = 0;
      if constexpr (Units::kPerUnit == 2 && kBytes == 1)
        for (; from + 2 * step <= head_dim; from += 2 * step) {
          if (next) ask_for<2 * step * kBytes>(next + first, 4, from * kBytes);
          add_products<Units, Format, R, 2>(rows + first, from, head_dim, query, units, sums);
        }
      for (; from < head_dim; from += step) {
        if (next) ask_for<step * kBytes>(next + first, 4, from * kBytes);
        add_products<Units, Format, R, 1>(rows + first, from, head_dim, query, units, sums);
      }
      unrolled<R>([&](int r) VLLM_INLINE { quarters[r][quad] = combine_in_quarters(sums[r], Add()); });
    }
    for (int r = 0; r < R; ++r) store(scores + r * kKeys + g * kLanes, combine_quarters(quarters[r], Add()));
  }
}

#endif

}  // namespace
