// How a product is divided: panels and rows among threads, and a thread's rows into tiles.
#pragma once

#include "gemm_micro.h"
#include "parallel.h"

namespace {

// A thread's part: panels [panels.begin, panels.end) of rows [rows.begin, rows.end).
struct Share {
  Range panels, rows;
};

// Threads divide the panels, so that each streams weights of its own; and the rows where that divides the work better.
// One panel costs its tiles of rows and, however few they are, about two tiles' time for reading it.
inline Share share_of(int64_t panels, int64_t rows, int thread, int num_threads) {
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  int along_rows = 1;
  int64_t best = INT64_MAX;
  for (int n = 1; n <= num_threads; ++n) {
    if (num_threads % n) continue;
    const int64_t others = num_threads / n;
    const int64_t cost = ((panels + others - 1) / others) * ((tiles + n - 1) / n + 2);
    if (cost < best) best = cost, along_rows = n;
  }
  const Range part = part_of(tiles, thread % along_rows, along_rows);
  const int64_t end = part.end * kTileRows;
  return {part_of(panels, thread / along_rows, num_threads / along_rows),
          {part.begin * kTileRows, end < rows ? end : rows}};
}

// Lines of 64 bytes that a tile fetches for each step: the four of a step in all, as evenly as can be, since fetching
// faster than memory delivers holds up the tile's own reads.
constexpr int lines_of(int tile, int tiles) {
  if (tiles == 1) return kLinesOfOneTile;
  if (tiles == 2) return 2;
  if (tiles == 3) return tile == 0 ? 2 : 1;
  return tile < 4 ? 1 : 0;
}

// The first row of a tile: all have `height` rows but the last, which takes a third of the one before it if it had no
// more than that. (Tiles of five rows, which equal shares would have, are measurably slower than the six and four
// beside them.)
constexpr int tile_begin(int rows, int tile, int tiles, int height = kTileRows) {
  if (tile == tiles) return rows;
  const bool narrow = tiles > 1 && rows - (tiles - 1) * height <= height / 3;
  return tile * height - (narrow && tile == tiles - 1 ? height / 3 : 0);
}

}  // namespace
