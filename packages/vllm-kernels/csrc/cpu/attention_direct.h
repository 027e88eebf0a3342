// The two products for few query rows, as in decoding: keys and values go from the cache to registers and are
// multiplied there. What they are packed for, being read many times, is not worth their way through memory here. The
// order of sums is that of packing and product(), so that the results are the same bits.
#pragma once

#include "attention_pack.h"

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

// sums [R][padded head_dim] = (factors ? factors[r] * sums : 0) + weights [R][kKeys numbers] times the values of groups
// [begin, end).
template <class Units, class Format, int R>
void direct_sums(const void* const* rows, const void* const* next, int begin, int end, int head_dim,
                 const float* weights, float* sums, const float* factors) {
  // Columns in registers: as many as product() has, in whole steps.
  constexpr int P = Units::kPerUnit, V = kBlockVecs < P ? P : kBlockVecs;
  constexpr int kBytes = sizeof(typename Format::type);
  const int width = padded_dim<Units>(head_dim);
  for (int column = 0; column < width; column += V * kLanes) {
    const int vecs = (width - column) / kLanes < V ? (width - column) / kLanes : V;
    const auto columns_of_keys = [&](int i, Vec* x) {
#if defined(__AVX512BF16__)
      if constexpr (P == 2 && kBytes == 1)
        if (column + V * kLanes <= head_dim) return value_columns_of_64<Format>(rows + i, column, x);
#endif
      for (int v = 0; v < V; v += P)
        if (v < vecs)
          value_columns<Units, Format>(rows + i, column + v * kLanes, head_dim, x + v);
        else
          for (int k = 0; k < P; ++k) x[v + k] = zero();
    };
    Vec acc[R][V];
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v)
        acc[r][v] = factors && v < vecs ? load(sums + r * width + column + v * kLanes) * splat(factors[r]) : zero();
    for (int i = begin * kLanes; i < end * kLanes; i += P) {
      if (next) ask_for<V * kLanes * kBytes>(next + i, P, column * kBytes);
      Vec x[V];
      columns_of_keys(i, x);
      for (int r = 0; r < R; ++r) {
        const Vec weight = splat(weights[r * (kKeys / P) + i / P]);
        for (int v = 0; v < V; ++v) acc[r][v] = Units::multiply_add(weight, x[v], acc[r][v]);
      }
    }
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < vecs; ++v) store(sums + r * width + column + v * kLanes, acc[r][v]);
  }
}

}  // namespace
