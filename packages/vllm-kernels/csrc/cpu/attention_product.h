// Small matrix products of attention, in units of 4 bytes along the summed dimension: a unit is one float (F32Units) or
// a pair of bf16 (BF16Units). One definition of each result: a chain of multiply-adds over the units in order, so that
// an element depends on its row and its column alone, however many rows or columns there are.
#pragma once

#include "vec.h"

namespace {

struct F32Units {
  static constexpr int kPerUnit = 1;  // numbers in a unit
  static Vec multiply_add(Vec a, Vec b, Vec sum) { return fma(a, b, sum); }
  // Stores numbers i to i + 15 of a row of units; returns them as stored.
  static Vec put(float* row, int i, Vec x) {
    store(row + i, x);
    return x;
  }
};

#if defined(__AVX512BF16__)
struct BF16Units {
  static constexpr int kPerUnit = 2;
  static Vec multiply_add(Vec a, Vec b, Vec sum) {
    return {_mm512_dpbf16_ps(sum.v, (__m512bh)a.v, (__m512bh)b.v)};
  }
  static Vec put(float* row, int i, Vec x) {
    const __m256i rounded = narrow_bf16(x);
    _mm256_storeu_si256((__m256i*)((uint16_t*)row + i), rounded);
    return widen_bf16(rounded);
  }
};
#endif

// Rows and columns (in Vecs) of the block that stays in registers.
constexpr int kBlockRows = 6;
#if defined(__AVX512F__)
constexpr int kBlockVecs = 4;
#else
constexpr int kBlockVecs = 1;
#endif

// c[r, j] = (factors ? factors[r] * c[r, j] : 0) + sum over u of a[r, u] * b[u, j], for R rows and 16 * V columns; lda,
// ldb and ldc are the floats from row to row.
template <class Units, int R, int V>
inline void product_block(const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc, int units,
                          const float* factors) {
  Vec sums[R][V];
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v)
      sums[r][v] = factors ? load(c + r * ldc + v * kLanes) * splat(factors[r]) : zero();
  for (int u = 0; u < units; ++u) {
    Vec columns[V];
    for (int v = 0; v < V; ++v) columns[v] = load(b + u * ldb + v * kLanes);
    for (int r = 0; r < R; ++r) {
      const Vec row = splat(a[r * lda + u]);
      for (int v = 0; v < V; ++v) sums[r][v] = Units::multiply_add(row, columns[v], sums[r][v]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) store(c + r * ldc + v * kLanes, sums[r][v]);
}

template <class Units, int V>
inline void product_columns(int rows, const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc,
                            int units, const float* factors) {
  for (int r = 0; r < rows; r += kBlockRows) {
    const float* row_a = a + r * lda;
    float* row_c = c + r * ldc;
    const float* row_factors = factors ? factors + r : nullptr;
    switch (rows - r) {
      case 1: product_block<Units, 1, V>(row_a, lda, b, ldb, row_c, ldc, units, row_factors); break;
      case 2: product_block<Units, 2, V>(row_a, lda, b, ldb, row_c, ldc, units, row_factors); break;
      case 3: product_block<Units, 3, V>(row_a, lda, b, ldb, row_c, ldc, units, row_factors); break;
      case 4: product_block<Units, 4, V>(row_a, lda, b, ldb, row_c, ldc, units, row_factors); break;
      case 5: product_block<Units, 5, V>(row_a, lda, b, ldb, row_c, ldc, units, row_factors); break;
      default: product_block<Units, kBlockRows, V>(row_a, lda, b, ldb, row_c, ldc, units, row_factors);
    }
  }
}

// The whole product: `rows` rows, `vecs` Vecs of columns.
template <class Units>
__attribute__((noinline)) void product(int rows, int vecs, const float* a, int64_t lda, const float* b, int64_t ldb,
                                       float* c, int64_t ldc, int units, const float* factors) {
  int v = 0;
  for (; v + kBlockVecs <= vecs; v += kBlockVecs)
    product_columns<Units, kBlockVecs>(rows, a, lda, b + v * kLanes, ldb, c + v * kLanes, ldc, units, factors);
#if defined(__AVX512F__)
  for (; v + 2 <= vecs; v += 2)
    product_columns<Units, 2>(rows, a, lda, b + v * kLanes, ldb, c + v * kLanes, ldc, units, factors);
  for (; v < vecs; ++v)
    product_columns<Units, 1>(rows, a, lda, b + v * kLanes, ldb, c + v * kLanes, ldc, units, factors);
#endif
}

}  // namespace
