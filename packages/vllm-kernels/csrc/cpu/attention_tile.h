// The product of attention_product.h for pairs of bf16 on AMX tiles: the packed layouts are those of tiles. An element
// depends on its row and its column alone here too, but the order of its sums is the instruction's own.
#pragma once

#include <type_traits>

#include "attention_product.h"
#include "tile.h"

namespace {

// Sixteen rows of c by `V` Vecs of columns, tiles 0 to V - 1: as product_block. The rows are there in memory, also
// where they are padding.
template <int V>
inline void tile_block(const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc, int units,
                       bool add) {
  const auto each = [](const auto& body) {
    body(std::integral_constant<int, 0>());
    if constexpr (V > 1) body(std::integral_constant<int, 1>());
    if constexpr (V > 2) body(std::integral_constant<int, 2>());
    if constexpr (V > 3) body(std::integral_constant<int, 3>());
  };
  each([&](auto v) {
    if (add)
      tile_load<v>(c + v * kTileSide, ldc * sizeof(float));
    else
      tile_zero<v>();
  });
  for (int u = 0; u < units; u += kTileSide) {
    tile_load<4>(a + u, lda * sizeof(float));
    each([&](auto v) {
      constexpr int in = 5 + v % 2;
      tile_load<in>(b + u * ldb + v * kTileSide, ldb * sizeof(float));
      tile_dot_bf16<v, 4, in>();
    });
  }
  each([&](auto v) { tile_store<v>(c + v * kTileSide, ldc * sizeof(float)); });
}

// product<BF16Units> on tiles, between tiles_begin and tiles_end. a and c must have whole sixteens of rows in memory,
// and units be a multiple of 16.
inline void tile_product(int rows, int vecs, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
                         int64_t ldc, int units, const float* factors) {
  if (factors)
    for (int r = 0; r < rows; ++r)
      for (int v = 0; v < vecs; ++v) {
        float* x = c + r * ldc + v * kLanes;
        store(x, load(x) * splat(factors[r]));
      }
  for (int v = 0; v < vecs; v += 4)
    for (int r = 0; r < rows; r += kTileSide) {
      const float *rows_a = a + r * lda, *columns_b = b + v * kLanes;
      float* block = c + r * ldc + v * kLanes;
      switch (vecs - v) {
        case 1: tile_block<1>(rows_a, lda, columns_b, ldb, block, ldc, units, factors); break;
        case 2: tile_block<2>(rows_a, lda, columns_b, ldb, block, ldc, units, factors); break;
        case 3: tile_block<3>(rows_a, lda, columns_b, ldb, block, ldc, units, factors); break;
        default: tile_block<4>(rows_a, lda, columns_b, ldb, block, ldc, units, factors);
      }
    }
}

}  // namespace
