// Products of attention on AMX tiles, and the layouts of their operands. An element depends on its row and its column
// alone here too, but the order of its sums is the instruction's own.
//
// Packed keys are tiles [groups of 16 keys][parts of 32 entries], packed values tiles [parts of 32 keys][sixteens of
// columns], a KiB each: 16 rows of 16 pairs of bf16, next to one another.
#pragma once

#include <type_traits>
#include <utility>

#include "attention_pack.h"
#include "tile.h"

namespace {

constexpr int kTilePair = 32;  // numbers in a row of a tile of pairs
constexpr int kTileFloats = kTileSize / sizeof(float);

// Groups [begin, end) of 16 keys -> their tiles; next: rows to ask for meanwhile, or null.
template <class Format>
void pack_key_tiles(const void* const* rows, const void* const* next, int begin, int end, int head_dim, float* tiles) {
  constexpr int kBytes = sizeof(typename Format::type);
  for (int g = begin; g < end; ++g)
    for (int from = 0; from < head_dim; from += kTilePair, tiles += kTileFloats) {
      if (next) ask_for<kTilePair * kBytes>(next + g * kLanes, kLanes, from * kBytes);
      Vec x[kLanes];
      transposed_units<BF16Units, Format>(rows + g * kLanes, from, head_dim, x);
      for (int i = 0; i < kLanes; ++i) store(tiles + i * kLanes, x[i]);
    }
}

// Groups [begin, end) of 16 values -> their tiles; both are even.
template <class Format>
void pack_value_tiles(const void* const* rows, const void* const* next, int begin, int end, int head_dim,
                      float* tiles) {
  constexpr int kBytes = sizeof(typename Format::type);
  const int width = padded_dim<BF16Units>(head_dim);
  for (int first = begin * kLanes; first < end * kLanes; first += kTilePair, tiles += width * kLanes)
    for (int i = 0; i < kTilePair; i += 2)
      for (int from = 0; from < head_dim; from += kTilePair) {
        if (next) ask_for<kTilePair * kBytes>(next + first + i, 2, from * kBytes);
        Vec x[2];
        value_columns<BF16Units, Format>(rows + first + i, from, head_dim, x);
        float* to = tiles + from * kLanes + i / 2 * kLanes;
        store(to, x[0]);
        store(to + kTileFloats, x[1]);
      }
}

// body(0), ..., body(n - 1), each with a constant.
template <class Body, int... i>
inline void each_constant(std::integer_sequence<int, i...>, const Body& body) {
  (body(std::integral_constant<int, i>()), ...);
}
template <int n, class Body>
inline void each_constant(const Body& body) {
  each_constant(std::make_integer_sequence<int, n>(), body);
}

// The two operands of a product on tiles: rows of pairs of bf16 `row_stride` bytes apart, and tiles of columns, those of
// a step `step` bytes after those of the step before, side by side `column` bytes apart.
struct TileOperands {
  const char* rows;
  int64_t row_stride;
  const char* tiles;
  int64_t column, step;
};

// The product in `blocks` blocks of R by C tiles. What a block has summed is stored when its tiles are needed for the
// next one: a store waits for sums that are not done, and the dots behind it wait with it.
template <int R, int C>
inline void tile_blocks(const TileOperands& x, int blocks, int steps, float* sums, int64_t stride) {
  static_assert(R * C <= 4 && R <= 2);
  const auto save = [&](auto r, auto c, int block) {
    tile_store<r * C + c>(sums + r * kTileSide * stride + (block * C + c) * kTileSide, stride * sizeof(float));
  };
  for (int b = 0; b < blocks; ++b) {
    const char* const tiles = x.tiles + b * C * x.column;
    for (int s = 0; s < steps; ++s)
      each_constant<C>([&](auto c) {
        tile_load<6 + c % 2>(tiles + s * x.step + c * x.column, kTileBytes);
        each_constant<R>([&](auto r) {
          if (c == 0) tile_load<4 + r>(x.rows + r * kTileSide * x.row_stride + s * kTileBytes, x.row_stride);
          if (s == 0) {
            if (b > 0) save(r, c, b - 1);
            tile_zero<r * C + c>();
          }
          tile_dot_bf16<r * C + c, 4 + r, 6 + c % 2>();
        });
      });
  }
  each_constant<R>([&](auto r) { each_constant<C>([&](auto c) { save(r, c, blocks - 1); }); });
}

// sums [rows][16 `columns`], `stride` floats from row to row = the product over `steps` steps of 32 numbers, of one or
// two tiles of rows (`rows` > 16: two) and an even number of tiles of columns. The rows are there in memory, also where
// they are padding.
inline void tile_product(int rows, int columns, TileOperands x, int steps, float* sums, int64_t stride) {
  if (rows > kTileSide) return tile_blocks<2, 2>(x, columns / 2, steps, sums, stride);
  if (columns >= 4) tile_blocks<1, 4>(x, columns / 4, steps, sums, stride);
  if (columns % 4 == 0) return;
  const int done = columns / 4 * 4;
  x.tiles += done * x.column;
  tile_blocks<1, 2>(x, 1, steps, sums + done * kTileSide, stride);
}

}  // namespace
