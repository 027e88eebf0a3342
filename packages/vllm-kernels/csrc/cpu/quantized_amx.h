// Products of bytes on AMX tiles: 32 rows by 32 lanes of sums at a time. The sums are those of the other levels.
#pragma once

#include "quantized_product.h"
#include "tile.h"

namespace {

constexpr int64_t kFewestAmxRows = 8;    // below, dot products of vectors are as fast
constexpr int64_t kTileColumns = 64;     // columns of activations in a tile
constexpr int64_t kTileEntries = 16 * kStepBytes;  // bytes of a panel, at 8 bits, for those

// C (int32) += A [16, 64] signed times B [16, 16] groups of four unsigned.
#if defined(VLLM_EMULATE_AMX)
template <int C, int A, int B>
void tile_dot_i8_u8() {
  emulated_dot_bytes<int8_t, uint8_t>(tiles_of_thread[C], tiles_of_thread[A], tiles_of_thread[B]);
}
#else
template <int C, int A, int B>
inline void tile_dot_i8_u8() { __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B)); }
#endif

// The entries of a piece with a byte for each: where they are if they are so already and fill whole tiles, else in
// `buffer`, whose end is not set: it meets zeros.
inline const uint8_t* entries_of(const Layout& layout, const Columns& piece, uint8_t* buffer) {
  if (layout.bits == 8) {
    if (piece.depth % kTileColumns == 0) return piece.entries;
    std::memcpy(buffer, piece.entries, static_cast<size_t>(piece.depth * kPanel));
    return buffer;
  }
  const Ints nibbles = splat_ints(0x0f0f0f0f);
  const uint8_t* from = piece.entries;
  for (int64_t k = 0; k < piece.depth; k += 8, from += kStepBytes)
    for (int lane = 0; lane < kPanel; lane += kLanes) {
      const Ints bytes = load_ints(from + lane * 4);
      uint8_t* to = buffer + k / 4 * kStepBytes + lane * 4;
      store_ints(to, bytes & nibbles);
      store_ints(to + kStepBytes, down16<4>(bytes) & nibbles);
    }
  return buffer;
}

// Sixteen rows of 64 columns from k on, of which `columns` are there: in place, or in `buffer` with zeros behind.
inline const int8_t* activations_tile(const int8_t* x, int64_t stride, int64_t columns, int8_t* buffer,
                                      int64_t* tile_stride) {
  if (columns >= kTileColumns) {
    *tile_stride = stride;
    return x;
  }
  std::memset(buffer, 0, kTileSize);
  for (int r = 0; r < kTileSide; ++r)
    std::memcpy(buffer + r * kTileBytes, x + r * stride, static_cast<size_t>(columns));
  *tile_stride = kTileBytes;
  return buffer;
}

// dots [16 or 32][64] at the first of 32 lanes = the products of 16 or 32 rows with the columns of a piece.
template <bool kTwo>
void tile_piece(const int8_t* x, int64_t stride, const uint8_t* entries, int64_t columns, int32_t* dots) {
  constexpr int64_t kRow = kPanel * sizeof(int32_t), kDown = kTileSide * kPanel;
  alignas(64) int8_t padded[2][kTileSize];
  tile_zero<0>();
  tile_zero<1>();
  if (kTwo) tile_zero<2>();
  if (kTwo) tile_zero<3>();
  for (int64_t k = 0; k < columns; k += kTileColumns, entries += kTileEntries) {
    int64_t tile_stride;
    tile_load<6>(entries, kStepBytes);
    tile_load<7>(entries + kTileBytes, kStepBytes);
    const int8_t* a = activations_tile(x + k, stride, columns - k, padded[0], &tile_stride);
    tile_load<4>(a, tile_stride);
    tile_dot_i8_u8<0, 4, 6>();
    tile_dot_i8_u8<1, 4, 7>();
    if (kTwo) {
      a = activations_tile(x + kTileSide * stride + k, stride, columns - k, padded[1], &tile_stride);
      tile_load<5>(a, tile_stride);
      tile_dot_i8_u8<2, 5, 6>();
      tile_dot_i8_u8<3, 5, 7>();
    }
  }
  tile_store<0>(dots, kRow);
  tile_store<1>(dots + kTileSide, kRow);
  if (kTwo) tile_store<2>(dots + kDown, kRow);
  if (kTwo) tile_store<3>(dots + kDown + kTileSide, kRow);
}

// Rows [begin, end), at most kRowBlock of them, times one panel. Up to 15 rows behind them are read.
inline void multiply_panel_amx(const Product& p, int64_t panel, int64_t begin, int64_t end) {
  tiles_begin();
  alignas(64) uint8_t buffer[kActivationGroup * kPanel];
  alignas(64) float sums[kRowBlock * kPanel] = {};
  alignas(64) int32_t dots[2 * kTileSide * kPanel];
  const uint8_t* data = p.packed + panel * p.layout.panel_bytes();
  const int rows = static_cast<int>(end - begin);
  for (int64_t i = 0; i < p.x.pieces; ++i) {
    const Columns piece = p.layout.piece(data, i, p.x.piece);
    const uint8_t* entries = entries_of(p.layout, piece, buffer);
    for (int r = 0; r < rows; r += 2 * kTileSide) {
      const int8_t* x = p.x.q + (begin + r) * p.x.stride + piece.begin;
      const int count = rows - r < 2 * kTileSide ? rows - r : 2 * kTileSide;
      for (int lane = 0; lane < kPanel; lane += 2 * kTileSide) {
        if (count > kTileSide)
          tile_piece<true>(x, p.x.stride, entries + lane * 4, piece.columns, dots + lane);
        else
          tile_piece<false>(x, p.x.stride, entries + lane * 4, piece.columns, dots + lane);
      }
      add_piece(p.x, i, piece, begin + r, count, dots, sums + r * kPanel);
    }
  }
  tiles_end();
  finish_quantized(p.output, p.factors, sums, rows, begin, panel);
}

}  // namespace
