// Which tokens filters leave: top-k and top-p by partial selection, min-p by arithmetic. Nothing is sorted.
// Candidates (the few logits at which a filter could end) are halved by their values until those left are equal: some
// passes over a short array, each of them sixteen at once and each but the first over a fraction of the one before.
#pragma once

#include "buffer.h"
#include "sampling_row.h"

namespace {

struct Candidates {
  float* values;
  float* weights;
  int32_t* columns;  // ascending
  int64_t count;
};

// What a thread works in, for rows of `size` logits.
struct Scratch {
  float *block_largest, *block_sums;  // of a Row
  Candidates candidates, rest;        // with places for all logits and sixteen more

  Scratch(Buffer& buffer, int64_t size) {
    const int64_t blocks = (size + kBlock - 1) / kBlock + kLanes, places = size + 2 * kLanes;
    block_largest = reinterpret_cast<float*>(buffer.get(sizeof(float) * (2 * blocks + 6 * places)));
    block_sums = block_largest + blocks;
    candidates = at(block_sums + blocks, places);
    rest = at(block_sums + blocks + 3 * places, places);
  }

 private:
  static Candidates at(float* memory, int64_t places) {
    return {memory, memory + places, reinterpret_cast<int32_t*>(memory + 2 * places), 0};
  }
};

// Fills the candidates with the logits of at least `threshold` (never -inf); without weights.
inline void collect(const Row& row, float threshold, Candidates& found) {
  const float least = threshold > -__FLT_MAX__ ? threshold : -__FLT_MAX__;
  const Vec limit = splat(least);
  float* const values = found.values;
  int32_t* const columns = found.columns;
  int64_t count = 0;
  for (int64_t block = 0; block < row.blocks(); ++block) {
    if (row.block_largest[block] < least) continue;
    for_logits(row.logits, row.begin(block), row.end(block), [&](int64_t i, Vec x) VLLM_INLINE {
      const uint32_t hits = ~bits(less(x, limit)) & 0xffff;
      if (!hits) return;
      compact(x, hits, values + count);
      compact_count(static_cast<int32_t>(i), hits, columns + count);
      count += __builtin_popcount(hits);
    });
  }
  found.count = count;
}

// Fills the candidates with those logits of at least `threshold` that the cut keeps, and their weights; returns the
// weight of all that the cut keeps.
inline double weigh(const Row& row, Cut cut, float threshold, Candidates& found) {
  const float below = __builtin_nextafterf(cut.value, -kInfinity);
  const Vec limit = splat(threshold);
  float* const values = found.values;
  float* const own_weights = found.weights;
  int32_t* const columns = found.columns;
  double total = 0;
  int64_t count = 0;
  for (int64_t block = 0; block < row.blocks(); ++block) {
    const float largest = row.block_largest[block];
    if (largest < cut.value || row.negligible(block)) continue;
    Vec all = zero();
    for_logits(row.logits, row.begin(block), row.end(block), [&](int64_t i, Vec x) VLLM_INLINE {
      const Mask kept = kept_lanes(cut, below, x, i);
      const Vec weights = select(kept, row.weights(x), zero());
      all = all + weights;
      const uint32_t hits = bits(kept) & ~bits(less(x, limit));
      if (!hits) return;
      compact(x, hits, values + count);
      compact(weights, hits, own_weights + count);
      compact_count(static_cast<int32_t>(i), hits, columns + count);
      count += __builtin_popcount(hits);
    });
    total += sum(all);
  }
  found.count = count;
  return total;
}

// How many candidates are above a value, or their weight: in fp32 inside of blocks, in fp64 beyond.
template <bool weighted>
double above(const Candidates& of, float value) {
  const Vec limit = splat(value);
  double total = 0;
  for (int64_t begin = 0; begin < of.count; begin += kBlock) {
    const int64_t end = begin + kBlock < of.count ? begin + kBlock : of.count;
    Vec weights = zero();
    int64_t number = 0;
    for_logits(of.values, begin, end, [&](int64_t i, Vec x) VLLM_INLINE {
      const Mask higher = less(limit, x);
      if (weighted)
        weights = weights + select(higher, load(of.weights + i), zero());
      else
        number += __builtin_popcount(bits(higher));
    });
    total += weighted ? static_cast<double>(sum(weights)) : static_cast<double>(number);
  }
  return total;
}

// Those of the candidates in (low, high], into `to`, which may be the same.
template <bool weighted>
void take_between(const Candidates& from, float low, float high, Candidates& to) {
  const Vec least = splat(low), most = splat(high);
  // Of their own, as for all that the compiler knows a store could change those of the structures.
  const float *const values = from.values, *const weights = from.weights;
  const int32_t* const columns = from.columns;
  float *const to_values = to.values, *const to_weights = to.weights;
  int32_t* const to_columns = to.columns;
  int64_t count = 0;
  for_logits(values, 0, from.count, [&](int64_t i, Vec x) VLLM_INLINE {
    const uint32_t hits = bits(less(least, x)) & ~bits(less(most, x));
    if (!hits) return;
    compact(x, hits, to_values + count);
    if (weighted) compact(load(weights + i), hits, to_weights + count);
    compact(columns + i, hits, to_columns + count);
    count += __builtin_popcount(hits);
  });
  to.count = count;
}

constexpr int kHalvings = 4;  // of the span of values, before what is outside is dropped

// The cut that keeps the fewest candidates, larger ones first and equals by column, that together reach `target`,
// which is above 0: their number, or their weight. All of them where they do not reach it. There must be one, and
// none may be -inf. Leaves the candidates as they are and uses `rest`.
template <bool weighted>
Cut find_cut(const Candidates& candidates, double target, Candidates& rest) {
  const Candidates* of = &candidates;
  for (;;) {
    Vec most = splat(-kInfinity), least = splat(kInfinity);
    for_logits(of->values, 0, of->count, [&](int64_t, Vec x) VLLM_INLINE {
      most = max(x, most);
      least = min(select(less(splat(-kInfinity), x), x, splat(kInfinity)), least);
    });
    const float largest_one = largest(most), smallest_one = -largest(zero() - least);
    if (largest_one == smallest_one) break;
    // The cut's value is in (low, high]: what is above `low` reaches the target, what is above `high` does not.
    float low = __builtin_nextafterf(smallest_one, -kInfinity), high = largest_one;
    double passed = 0;  // above high
    for (int k = 0; k < kHalvings; ++k) {
      const float from = low > smallest_one ? low : smallest_one;
      float middle = 0.5f * from + 0.5f * high;
      if (!(middle < high)) middle = __builtin_nextafterf(high, -kInfinity);
      if (middle < from) break;  // one value is left
      const double reached = above<weighted>(*of, middle);
      if (reached >= target) {
        low = middle;
      } else {
        high = middle;
        passed = reached;
      }
    }
    take_between<weighted>(*of, low, high, rest);
    target -= passed;
    of = &rest;
  }
  double running = 0;
  int64_t i = 0;
  for (; i < of->count - 1; ++i) {
    running += weighted ? of->weights[i] : 1.f;
    if (running >= target) break;
  }
  return {of->values[0], of->columns[i]};
}

// A lower bound of the k-th largest logit, for k below the number of blocks: so many blocks have one as large.
inline float at_most_kth(const Row& row, int64_t k, Scratch& scratch) {
  Candidates& of = scratch.candidates;
  of.count = 0;
  for (int64_t block = 0; block < row.blocks(); ++block) {
    if (!(row.block_largest[block] > -kInfinity)) continue;
    of.values[of.count] = row.block_largest[block];
    of.columns[of.count++] = static_cast<int32_t>(block);
  }
  return of.count < k ? -kInfinity : find_cut<false>(of, static_cast<double>(k), scratch.rest).value;
}

// Fills the candidates with those logits above `least` of one sixteen of each block, without weights; their columns are
// only an order. The most likely token is left out: alone it would stand for sixteen.
inline void take_sample(const Row& row, float least, Candidates& of) {
  const Vec low = splat(least), high = splat(row.largest);
  of.count = 0;
  for (int64_t block = 0; block < row.blocks(); ++block) {
    const int64_t i = row.begin(block) + block * kLanes % kBlock;
    if (row.block_largest[block] < least || i + kLanes > row.size) continue;
    const Vec x = load(row.logits + i);
    const uint32_t hits = bits(less(low, x)) & bits(less(x, high));
    compact(x, hits, of.values + of.count);
    of.count += __builtin_popcount(hits);
  }
  for (int64_t i = 0; i < of.count; ++i) of.columns[i] = static_cast<int32_t>(i);
}

// Likely to be somewhat below the k-th largest logit; -inf where a sample tells nothing.
inline float guess_kth(const Row& row, int64_t k, Scratch& scratch) {
  Candidates& of = scratch.candidates;
  take_sample(row, -kInfinity, of);
  const double wanted = 1.25 * k / (kBlock / kLanes) + 16;
  return of.count < wanted ? -kInfinity : find_cut<false>(of, wanted, scratch.rest).value;
}

// The k largest, of equals the first ones; k > 0. Fewer where fewer are possible.
inline Cut cut_top_k(const Row& row, int64_t k, Scratch& scratch) {
  const float threshold = k < row.blocks() ? at_most_kth(row, k, scratch) : guess_kth(row, k, scratch);
  collect(row, threshold, scratch.candidates);
  if (scratch.candidates.count < k && threshold > -kInfinity) collect(row, -kInfinity, scratch.candidates);
  if (scratch.candidates.count < k) return kKeepAll;
  return find_cut<false>(scratch.candidates, static_cast<double>(k), scratch.rest);
}

// Weights of at least min_p, in (0, 1].
inline Cut cut_min_p(const Row& row, double min_p, double temperature) {
  const double least = row.largest + temperature * __builtin_log(min_p);
  float value = static_cast<float>(least);
  if (value < least) value = __builtin_nextafterf(value, kInfinity);
  return {value, row.size};
}

// A value below which top_p, under 1, never ends: all tokens so unlikely weigh less together than what it leaves out.
inline float never_in_nucleus(const Row& row, double top_p, double temperature) {
  // The weight of all is at least 1, which the most likely one has; with some room for rounding.
  const double value = row.largest + temperature * (__builtin_log((1 - top_p) / row.size) - 0.01);
  return static_cast<float>(value - __builtin_fabs(value) * 1e-6);
}

// About where the share `top_p` of what the cut keeps is reached; -inf where a sample tells nothing.
inline float guess_nucleus(const Row& row, double top_p, Cut cut, Scratch& scratch) {
  Candidates& of = scratch.candidates;
  take_sample(row, cut.value, of);
  if (of.count == 0) return -kInfinity;
  for (int64_t i = 0; i < of.count; i += kLanes) store(of.weights + i, row.weights(load(of.values + i)));
  return find_cut<true>(of, top_p * above<true>(of, -kInfinity), scratch.rest).value;
}

// What top_p, in (0, 1), leaves of what the cut keeps. Fills the candidates with all that it keeps, and more.
// `many`: whether the cut may keep more than some hundreds.
inline Cut cut_top_p(const Row& row, double top_p, double temperature, Cut cut, bool many, Scratch& scratch) {
  const float outside = never_in_nucleus(row, top_p, temperature);
  const float sure = outside > cut.value ? outside : cut.value;
  // Half of the way from top_p to 1 is room for the error of the guess. If that was not enough, the pass is made again.
  const float guess = many ? guess_nucleus(row, (1 + top_p) / 2, cut, scratch) : sure;
  float threshold = guess > sure ? guess : sure;
  double total = weigh(row, cut, threshold, scratch.candidates);
  if (threshold > sure && above<true>(scratch.candidates, -kInfinity) < top_p * total)
    total = weigh(row, cut, sure, scratch.candidates);
  return stricter(cut, find_cut<true>(scratch.candidates, top_p * total, scratch.rest));
}

// What the filters of a row leave.
struct Kept {
  Cut cut;
  const Candidates& candidates;  // all that the cut keeps, and maybe others
};

// The filters in turn, each on what the one before has kept: min_p in [0, 1] (0 keeps all), top_k (0 keeps all),
// top_p in (0, 1] (1 keeps all). The row must be usable.
inline Kept filter(const Row& row, double temperature, int64_t top_k, double top_p, double min_p, Scratch& scratch) {
  Cut cut = kKeepAll;
  if (min_p > 0) cut = cut_min_p(row, min_p, temperature);
  const bool limited = top_k > 0 && top_k < row.size;
  if (limited) cut = stricter(cut, cut_top_k(row, top_k, scratch));
  if (top_p < 1)
    cut = cut_top_p(row, top_p, temperature, cut, !limited || top_k > row.blocks(), scratch);
  else
    weigh(row, cut, cut.value, scratch.candidates);
  return {cut, scratch.candidates};
}

// A column of those that are kept. Uses row.block_sums.
inline int64_t pick_of_kept(const Row& row, const Kept& kept, double uniform) {
  const Candidates& of = kept.candidates;
  // The cut's column as a place among the candidates.
  int64_t first = 0, end = of.count;
  while (first < end) {
    const int64_t middle = (first + end) / 2;
    if (of.columns[middle] <= kept.cut.last)
      first = middle + 1;
    else
      end = middle;
  }
  const Cut cut = {kept.cut.value, first - 1};
  const float below = __builtin_nextafterf(cut.value, -kInfinity);
  const int64_t parts = (of.count + kBlock - 1) / kBlock;
  const auto for_part = [&](int64_t part, const auto& body) {
    const int64_t end = part * kBlock + kBlock < of.count ? part * kBlock + kBlock : of.count;
    for_logits(of.values, part * kBlock, end, [&](int64_t i, Vec x) VLLM_INLINE {
      body(i - part * kBlock, select(kept_lanes(cut, below, x, i), load(of.weights + i), zero()));
    });
    return end - part * kBlock;
  };
  for (int64_t part = 0; part < parts; ++part) {
    Vec total = zero();
    for_part(part, [&](int64_t, Vec weights) { total = total + weights; });
    row.block_sums[part] = sum(total);
  }
  return of.columns[pick(row.block_sums, parts, uniform, [&](int64_t part, float* weights) {
    return for_part(part, [&](int64_t i, Vec own) { store(weights + i, own); });
  })];
}

}  // namespace
