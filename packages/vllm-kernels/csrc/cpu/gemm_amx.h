// bf16 products on AMX tiles: 32 rows by 32 columns of sums at a time, from two tiles of activations and two of weights.
#pragma once

#include "gemm.h"
#include "tile.h"

namespace {

constexpr int kAmxRows = 256;            // rows packed at a time
constexpr int64_t kAmxBlockSteps = 1024; // pairs along K at a time: 256 KiB of a panel
constexpr int64_t kTileSteps = 16;       // pairs in a tile

// Rows of activations as tiles [rows / 16][k / 32][16][32], so that a tile is one piece of memory whatever the stride of
// x; rows and columns that are not there are zeros.
inline const uint8_t* pack_tiles(const Problem& problem, int64_t row, int64_t rows, Buffer& buffer) {
  const int64_t k = problem.weight->k, across = round_up(k, kPaddedK) / kPaddedK, down = round_up(rows, kTileSide);
  uint8_t* tiles = (uint8_t*)buffer.get(down * across * kTileBytes);
  for (int64_t r = 0; r < down; ++r) {
    const uint16_t* from = (const uint16_t*)problem.x + (row + r) * problem.stride;
    uint8_t* to = tiles + (r / kTileSide * across * kTileSide + r % kTileSide) * kTileBytes;
    for (int64_t i = 0; i < across; ++i, to += kTileSize) {
      const int64_t left = r < rows ? k - i * kPaddedK : 0;
      if (left >= kPaddedK) {
        _mm512_storeu_si512(to, _mm512_loadu_si512(from + i * kPaddedK));
      } else {
        const __mmask32 there = left > 0 ? static_cast<__mmask32>((1ull << left) - 1) : 0;
        _mm512_storeu_si512(to, _mm512_maskz_loadu_epi16(there, from + i * kPaddedK));
      }
    }
  }
  return tiles;
}

// One or two tiles of rows by two tiles of columns. a: packed rows, `next_rows` bytes from one tile of rows to the next;
// b: weights at the first of 32 columns; c: [16 or 32, 64] at that column.
template <bool kTwo>
void tile_block(const uint8_t* a, int64_t next_rows, const uint8_t* b, int64_t tiles, float* c, bool add,
                const uint8_t* ahead, int lines) {
  constexpr int64_t kRow = kPanel * sizeof(float), kDown = kTileSide * kPanel;
  if (add) {
    tile_load<0>(c, kRow);
    tile_load<1>(c + kTileSide, kRow);
    if (kTwo) tile_load<2>(c + kDown, kRow);
    if (kTwo) tile_load<3>(c + kDown + kTileSide, kRow);
  } else {
    tile_zero<0>();
    tile_zero<1>();
    if (kTwo) tile_zero<2>();
    if (kTwo) tile_zero<3>();
  }
  for (int64_t i = 0; i < tiles; ++i, a += kTileSize, b += kTileSteps * kStepBytes) {
    for (int line = 0; line < lines; ++line, ahead += 64) _mm_prefetch((const char*)ahead, _MM_HINT_T1);
    tile_load<4>(a, kTileBytes);
    tile_load<6>(b, kStepBytes);
    tile_load<7>(b + kTileBytes, kStepBytes);
    tile_dot_bf16<0, 4, 6>();
    tile_dot_bf16<1, 4, 7>();
    if (kTwo) {
      tile_load<5>(a + next_rows, kTileBytes);
      tile_dot_bf16<2, 5, 6>();
      tile_dot_bf16<3, 5, 7>();
    }
  }
  tile_store<0>(c, kRow);
  tile_store<1>(c + kTileSide, kRow);
  if (kTwo) tile_store<2>(c + kDown, kRow);
  if (kTwo) tile_store<3>(c + kDown + kTileSide, kRow);
}

// Sums of a panel for `down` tiles of rows, in c [16 * down, 64].
inline void multiply_panel_amx(const Weight& w, const uint8_t* a, int64_t down, int64_t panel, float* c) {
  const int64_t across = round_up(w.k, kPaddedK) / kPaddedK, next_rows = across * kTileSize;
  const uint8_t* b = w.data + panel * panel_bytes(w);
  for (int64_t first = 0; first < across; first += kAmxBlockSteps / kTileSteps) {
    const int64_t left = across - first, most = kAmxBlockSteps / kTileSteps, tiles = left < most ? left : most;
    const uint8_t* part = b + first * kTileSteps * kStepBytes;
    const uint8_t* ahead = part + tiles * kTileSteps * kStepBytes;
    // The first two passes over this part fetch the one that follows: 64 lines for each 16 steps.
    int passes = 0;
    for (int64_t t = 0; t < down; t += 2)
      for (int half = 0; half < 2; ++half, ++passes) {
        const int lines = passes < 2 ? 32 : 0;
        const uint8_t* next = ahead + passes * tiles * 32 * 64;
        const uint8_t* rows = a + t * next_rows + first * kTileSize;
        float* sums = c + t * kTileSide * kPanel + half * kHalfPanel;
        if (t + 1 < down)
          tile_block<true>(rows, next_rows, part + half * 2 * kTileBytes, tiles, sums, first > 0, next, lines);
        else
          tile_block<false>(rows, next_rows, part + half * 2 * kTileBytes, tiles, sums, first > 0, next, lines);
      }
  }
}

// The whole product. A result does not depend on the number of rows among products that come here.
inline void multiply_amx(const Problem& problem, int threads) {
  run_team(useful_threads(problem, threads), [&](int thread, int num_threads) {
    static thread_local Buffer copies, sums;
    const Share share = share_of(panels_of(*problem.weight), problem.rows, thread, num_threads);
    tiles_begin();
    for (int64_t row = share.rows.begin; row < share.rows.end; row += kAmxRows) {
      const int64_t left = share.rows.end - row, rows = left < kAmxRows ? left : kAmxRows;
      const uint8_t* a = pack_tiles(problem, row, rows, copies);
      const int64_t down = round_up(rows, kTileSide) / kTileSide;
      float* c = (float*)sums.get(down * kTileSide * kPanel * sizeof(float));
      for (int64_t panel = share.panels.begin; panel < share.panels.end; ++panel) {
        multiply_panel_amx(*problem.weight, a, down, panel, c);
        finish(problem.out, c, static_cast<int>(rows), row, panel);
      }
    }
    tiles_end();
  });
}

}  // namespace
