// A piece of a quantised weight, widened to bf16, on AMX tiles: 32 rows by 32 lanes of sums at a time.
#pragma once

#include "pack.h"
#include "tile.h"

namespace {

constexpr int64_t kPairColumns = 32;  // columns of activations in a tile of bf16

// c [16 or 32][64] at the first of 32 lanes = the products of 16 or 32 rows of bf16, `stride` bytes apart, with `tiles`
// tiles of a widened piece ([k / 2][64][2]) at that lane.
template <bool kTwo>
void tile_bf16(const uint8_t* x, int64_t stride, const uint8_t* b, int64_t tiles, float* c) {
  constexpr int64_t kRow = kPanel * sizeof(float), kDown = kTileSide * kPanel;
  tile_zero<0>();
  tile_zero<1>();
  if (kTwo) tile_zero<2>();
  if (kTwo) tile_zero<3>();
  for (int64_t i = 0; i < tiles; ++i, x += kTileBytes, b += kTileSide * kStepBytes) {
    tile_load<4>(x, stride);
    tile_load<6>(b, kStepBytes);
    tile_load<7>(b + kTileBytes, kStepBytes);
    tile_dot_bf16<0, 4, 6>();
    tile_dot_bf16<1, 4, 7>();
    if (kTwo) {
      tile_load<5>(x + kTileSide * stride, stride);
      tile_dot_bf16<2, 5, 6>();
      tile_dot_bf16<3, 5, 7>();
    }
  }
  tile_store<0>(c, kRow);
  tile_store<1>(c + kTileSide, kRow);
  if (kTwo) tile_store<2>(c + kDown, kRow);
  if (kTwo) tile_store<3>(c + kDown + kTileSide, kRow);
}

// c [rows up to 32][64]; rows up to the next 16 are read.
inline void tile_bf16(int rows, const uint8_t* x, int64_t stride, const float* piece, int64_t tiles, float* c) {
  for (int lane = 0; lane < kPanel; lane += 2 * kTileSide) {
    const uint8_t* b = reinterpret_cast<const uint8_t*>(piece + lane);
    if (rows > kTileSide)
      tile_bf16<true>(x, stride, b, tiles, c + lane);
    else
      tile_bf16<false>(x, stride, b, tiles, c + lane);
  }
}

}  // namespace
