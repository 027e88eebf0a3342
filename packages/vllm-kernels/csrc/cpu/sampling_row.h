// One row of logits, looked at in blocks: the largest logit of each block tells which blocks a later question can skip,
// and sums of blocks tell in which of them a draw ends. A row of 152k logits stays in the core's cache meanwhile.
//
// The weight of a logit x is e^((x - largest) / temperature): its probability but for the common factor. Sums inside a
// block are in fp32 and in one fixed order, sums of blocks in fp64; all that is found out hangs on the row alone.
#pragma once

#include "sampling_lanes.h"

namespace {

constexpr int64_t kBlock = 256;
constexpr float kSmallestExponent = -104.f;  // below it a weight is 0

// Tokens that filters leave: logits above `value`, and those equal to it up to the column `last`. Every filter keeps
// the beginning of one order (larger logits first, equals by column), so of two filters one's cut is both.
struct Cut {
  float value;
  int64_t last;
};
constexpr Cut kKeepAll = {-kInfinity, -1};  // all possible ones, that is

inline Cut stricter(Cut a, Cut b) {
  if (a.value != b.value) return a.value > b.value ? a : b;
  return a.last < b.last ? a : b;
}

// The lanes of x, of columns from i on, that a cut keeps. `below` is the float before cut.value, -inf for -inf.
inline Mask kept_lanes(Cut cut, float below, Vec x, int64_t i) {
  if (i > cut.last) return less(splat(cut.value), x);
  if (i + kLanes - 1 <= cut.last) return less(splat(below), x);
  return less(select(first(static_cast<int>(cut.last - i + 1)), splat(below), splat(cut.value)), x);
}

struct Row {
  const float* logits;
  int64_t size;
  float* block_largest;  // [blocks()]
  float* block_sums;     // [blocks()]: of all weights, if scan is asked to
  float largest;         // NaN if the row holds one
  float scale;           // 1 / temperature

  int64_t blocks() const { return (size + kBlock - 1) / kBlock; }
  int64_t begin(int64_t block) const { return block * kBlock; }
  int64_t end(int64_t block) const { return block * kBlock + kBlock < size ? block * kBlock + kBlock : size; }
  // Whether tokens can be drawn from it.
  bool usable() const { return largest > -kInfinity && largest < kInfinity; }  // false for NaN
  Vec weights(Vec x) const { return exp((x - splat(largest)) * splat(scale)); }
  // Whether all weights of a block are 0.
  bool negligible(int64_t block) const { return (block_largest[block] - largest) * scale < kSmallestExponent; }
};

// Fills block_largest and largest; with `sums` also block_sums, in the same pass, with weights relative to the largest
// logit of each block: rescale_sums makes them relative to that of the row.
template <bool sums>
void scan(Row& row) {
  float largest = -kInfinity;
  Mask nan = no_lanes();
  for (int64_t block = 0; block < row.blocks(); ++block) {
    const int64_t begin = row.begin(block);
    const bool whole = begin + kBlock <= row.size;
    Vec top[4] = {splat(-kInfinity), splat(-kInfinity), splat(-kInfinity), splat(-kInfinity)};
    if (whole) {
      for (int64_t i = begin; i < begin + kBlock; i += 4 * kLanes) {
        Vec x[4];
        for (int k = 0; k < 4; ++k) {
          x[k] = load(row.logits + i + k * kLanes);
          top[k] = max(x[k], top[k]);
        }
        nan = either(nan, either(either_nan(x[0], x[1]), either_nan(x[2], x[3])));
      }
    } else {
      for_logits(row.logits, begin, row.size, [&](int64_t, Vec x) VLLM_INLINE {
        top[0] = max(x, top[0]);
        nan = either(nan, either_nan(x, x));
      });
    }
    const float own = ::largest(max(max(top[0], top[1]), max(top[2], top[3])));
    row.block_largest[block] = own;
    if (own > largest) largest = own;
    if (!sums) continue;
    // Already so far below what was seen that its weights are 0, or without any possible token.
    if (!(own > -kInfinity) || (own - largest) * row.scale < kSmallestExponent) {
      row.block_sums[block] = 0;
      continue;
    }
    const Vec shift = splat(own), scale = splat(row.scale);
    Vec total[4] = {zero(), zero(), zero(), zero()};
    if (whole) {
      for (int64_t i = begin; i < begin + kBlock; i += 4 * kLanes)
        for (int k = 0; k < 4; ++k) total[k] = total[k] + exp((load(row.logits + i + k * kLanes) - shift) * scale);
    } else {
      for_logits(row.logits, begin, row.size, [&](int64_t, Vec x) VLLM_INLINE {
        total[0] = total[0] + exp((x - shift) * scale);
      });
    }
    row.block_sums[block] = sum((total[0] + total[1]) + (total[2] + total[3]));
  }
  row.largest = bits(nan) ? __builtin_nanf("") : largest;
}

// See scan. The row must be usable.
inline void rescale_sums(Row& row) {
  for_lanes(row.blocks(), [&](int64_t i, Mask m, bool whole) {
    if (whole)
      store(row.block_sums + i, load(row.block_sums + i) * row.weights(load(row.block_largest + i)));
    else
      store(row.block_sums + i, load(row.block_sums + i, m) * row.weights(load(row.block_largest + i, m)), m);
  });
}

// The first column of the row's largest logit; the row must be usable.
inline int64_t first_of_largest(const Row& row) {
  for (int64_t block = 0; block < row.blocks(); ++block) {
    if (row.block_largest[block] != row.largest) continue;
    for (int64_t i = row.begin(block);; ++i)
      if (row.logits[i] == row.largest) return i;
  }
  return -1;  // cannot be reached
}

// Where a draw ends that goes through parts in order: in the first place such that the weights up to it are more than
// `uniform` of all. `sums` [parts] are those of the parts, and fill(part, weights) writes the weights of one, at most
// kBlock, and returns how many there are. Returns part * kBlock + place; never a place of weight 0.
template <class Fill>
int64_t pick(const float* sums, int64_t parts, double uniform, const Fill& fill) {
  double total = 0;
  for (int64_t i = 0; i < parts; ++i) total += sums[i];
  const double target = uniform * total;
  double before = 0, running = 0;
  int64_t part = 0;
  for (int64_t i = 0; i < parts && running <= target; ++i) {
    if (sums[i] <= 0) continue;
    part = i;  // where rounding leaves none above the target, the last that has any weight
    before = running;
    running += sums[i];
  }
  float weights[kBlock + kLanes];
  const int64_t count = fill(part, weights);
  double inside = 0;
  for (int64_t i = 0; i < count; ++i) inside += weights[i];
  // This sum and the part's own differ by rounding, so the target goes over as a share.
  const double wanted = (target - before) / sums[part] * inside;
  int64_t place = 0;
  running = 0;
  for (int64_t i = 0; i < count && running <= wanted; ++i) {
    if (weights[i] <= 0) continue;
    place = i;
    running += weights[i];
  }
  return part * kBlock + place;
}

// A column of the whole row; block_sums must hold all weights.
inline int64_t pick_of_all(const Row& row, double uniform) {
  return pick(row.block_sums, row.blocks(), uniform, [&](int64_t block, float* weights) {
    const int64_t begin = row.begin(block), end = row.end(block);
    for_logits(row.logits, begin, end, [&](int64_t i, Vec x) VLLM_INLINE {
      store(weights + (i - begin), row.weights(x));
    });
    return end - begin;
  });
}

}  // namespace
