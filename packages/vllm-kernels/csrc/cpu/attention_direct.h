// The two products for few query rows, as in decoding: keys and values go from the cache to registers and are
// multiplied there. What they are packed for, being read many times, is not worth their way through memory here. The
// order of sums is that of packing and product(), so that the results are the same bits.
#pragma once

#include "attention_pack.h"
#include "unroll.h"

namespace {

// scores [R][kKeys] = query [R][units] times the keys of groups [begin, end); next: rows to ask for meanwhile, or null.
template <class Units, class Format, int R>
void direct_scores(const void* const* rows, const void* const* next, int begin, int end, int head_dim,
                   const float* query, float* scores) {
  constexpr int step = kLanes * Units::kPerUnit, kBytes = sizeof(typename Format::type);
  const int units = padded_dim<Units>(head_dim) / Units::kPerUnit;
  for (int g = begin; g < end; ++g) {
    Vec sums[R];
    for (int r = 0; r < R; ++r) sums[r] = zero();
    for (int from = 0; from < head_dim; from += step) {
      if (next) ask_for<step * kBytes>(next + g * kLanes, kLanes, from * kBytes);
      Vec x[kLanes];
      transposed_units<Units, Format>(rows + g * kLanes, from, head_dim, x);
      const float* parts[R];
      for (int r = 0; r < R; ++r) parts[r] = query + static_cast<int64_t>(r) * units + from / Units::kPerUnit;
      for (int u = 0; u < kLanes; ++u)
        for (int r = 0; r < R; ++r) sums[r] = Units::multiply_add(splat(parts[r][u]), x[u], sums[r]);
    }
    for (int r = 0; r < R; ++r) store(scores + r * kKeys + g * kLanes, sums[r]);
  }
}

// direct_sums for columns [column, column + 16 V), those that there are.
template <class Units, class Format, int R, int V>
VLLM_INLINE inline void direct_columns(const void* const* rows, const void* const* next, int begin, int end,
                                       int head_dim, int column, const float* weights, float* sums,
                                       const float* factors) {
  constexpr int P = Units::kPerUnit, kBytes = sizeof(typename Format::type);
  const int width = padded_dim<Units>(head_dim), vecs = (width - column) / kLanes;
  float* const columns = sums + column;
  Vec acc[R][V];
  unrolled<R>([&](int r) VLLM_INLINE {
    unrolled<V>([&](int v) VLLM_INLINE {
      acc[r][v] = factors && v < vecs ? load(columns + r * width + v * kLanes) * splat(factors[r]) : zero();
    });
  });
  for (int i = begin * kLanes; i < end * kLanes; i += P) {
    if (next) ask_for<V * kLanes * kBytes>(next + i, P, column * kBytes);
    Vec x[V];
    bool whole = false;
#if defined(__AVX512BF16__)
    if constexpr (P == 2 && kBytes == 1) {
      whole = column + V * kLanes <= head_dim;
      if (whole)
        unrolled<V / 4>([&](int v) VLLM_INLINE {
          value_columns_of_64<Format>(rows + i, column + v * 4 * kLanes, x + v * 4);
        });
    }
#endif
    if (!whole)
      unrolled<V / P>([&](int v) VLLM_INLINE {
        if (v * P < vecs)
          value_columns<Units, Format>(rows + i, column + v * P * kLanes, head_dim, x + v * P);
        else
          unrolled<P>([&](int k) VLLM_INLINE { x[v * P + k] = zero(); });
      });
    unrolled<R>([&](int r) VLLM_INLINE {
      const Vec weight = splat(weights[r * (kKeys / P) + i / P]);
      unrolled<V>([&](int v) VLLM_INLINE { acc[r][v] = Units::multiply_add(weight, x[v], acc[r][v]); });
    });
  }
  unrolled<R>([&](int r) VLLM_INLINE {
    unrolled<V>([&](int v) VLLM_INLINE {
      if (v < vecs) store(columns + r * width + v * kLanes, acc[r][v]);
    });
  });
}

// sums [R][padded head_dim] = (factors ? factors[r] * sums : 0) + weights [R][kKeys numbers] times the values of groups
// [begin, end).
template <class Units, class Format, int R>
void direct_sums(const void* const* rows, const void* const* next, int begin, int end, int head_dim,
                 const float* weights, float* sums, const float* factors) {
  constexpr int V = kBlockVecs < Units::kPerUnit ? Units::kPerUnit : kBlockVecs;
  const int width = padded_dim<Units>(head_dim);
  int column = 0;
  if constexpr (kBlockVecs == 4 && R <= 2)  // registers are enough for twice the columns
    for (; column + 2 * V * kLanes <= width; column += 2 * V * kLanes)
      direct_columns<Units, Format, R, 2 * V>(rows, next, begin, end, head_dim, column, weights, sums, factors);
  for (; column < width; column += V * kLanes)
    direct_columns<Units, Format, R, V>(rows, next, begin, end, head_dim, column, weights, sums, factors);
}

}  // namespace
