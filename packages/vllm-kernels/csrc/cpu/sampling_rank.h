// The most likely tokens in order, where a request asks for so many, and the place of a token among all.
#pragma once

#include "sampling_select.h"

namespace {

struct Ranked {
  uint32_t key;
  int32_t column;
};

// An integer that is larger for a smaller float; equal for -0 and 0.
inline uint32_t descending_key(float x) {
  const float same = x + 0.f;
  uint32_t bits;
  __builtin_memcpy(&bits, &same, 4);
  return bits & 0x80000000u ? bits : ~bits & 0x7fffffffu;
}

// Sorts by ascending keys, equals in the order in which they stand; `spare` has room for as many. Returns where the
// result is.
inline Ranked* sort(Ranked* entries, Ranked* spare, int64_t count) {
  if (count <= 48) {
    for (int64_t i = 1; i < count; ++i) {
      const Ranked one = entries[i];
      int64_t place = i;
      for (; place > 0 && entries[place - 1].key > one.key; --place) entries[place] = entries[place - 1];
      entries[place] = one;
    }
    return entries;
  }
  for (int shift = 0; shift < 32; shift += 8) {
    int64_t places[256] = {};
    for (int64_t i = 0; i < count; ++i) ++places[entries[i].key >> shift & 255];
    int64_t before = 0;
    for (int64_t& place : places) {
      const int64_t own = place;
      place = before;
      before += own;
    }
    for (int64_t i = 0; i < count; ++i) spare[places[entries[i].key >> shift & 255]++] = entries[i];
    Ranked* const sorted = spare;
    spare = entries;
    entries = sorted;
  }
  return entries;
}

// Columns of the k largest logits, largest first, equals by column. Impossible ones come last.
inline void top_columns(const Row& row, int64_t k, Ranked* entries, Ranked* spare, Scratch& scratch, int64_t* out) {
  const Cut cut = k < row.size ? cut_top_k(row, k, scratch) : kKeepAll;
  const float below = __builtin_nextafterf(cut.value, -kInfinity);
  int64_t count = 0;
  for (int64_t block = 0; block < row.blocks(); ++block) {
    if (row.block_largest[block] < cut.value) continue;
    for_logits(row.logits, row.begin(block), row.end(block), [&](int64_t i, Vec x) VLLM_INLINE {
      for (uint32_t hits = bits(kept_lanes(cut, below, x, i)); hits; hits &= hits - 1) {
        const int64_t column = i + __builtin_ctz(hits);
        entries[count++] = {descending_key(row.logits[column]), static_cast<int32_t>(column)};
      }
    });
  }
  const Ranked* sorted = sort(entries, spare, count);
  for (int64_t i = 0; i < count; ++i) out[i] = sorted[i].column;
  for (int64_t column = 0; count < k; ++column)
    if (row.logits[column] == -kInfinity) out[count++] = column;
}

// How many logits of the row are larger.
inline int64_t count_larger(const Row& row, float than) {
  int64_t count = 0;
  for (int64_t block = 0; block < row.blocks(); ++block)
    if (row.block_largest[block] > than)
      for_logits(row.logits, row.begin(block), row.end(block),
                 [&](int64_t, Vec x) VLLM_INLINE { count += __builtin_popcount(bits(less(splat(than), x))); });
  return count;
}

// The natural logarithm of the sum of e^logit; block_sums must hold all weights at temperature 1.
inline double log_of_total(const Row& row) {
  double total = 0;
  for (int64_t block = 0; block < row.blocks(); ++block) total += row.block_sums[block];
  return row.largest + __builtin_log(total);
}

}  // namespace
