// Scores of a block of keys -> weights, by softmax that goes along the blocks: each row keeps its largest score so far
// and the sum of exp(score - largest), and what was summed before is multiplied by a factor when the largest grows.
#pragma once

#include "attention_pack.h"

namespace {

// How q . k becomes a score. Positions are the sequence's.
struct ScoreRule {
  float scale;
  float soft_cap;  // 0: none
};

// What a row (a query head of a token) sees, and where it is with its sums.
struct Rows {
  int count;
  const int64_t* first;  // [count] the first and
  const int64_t* last;   // [count] the last position that it sees
  const float* slopes;   // [count] ALiBi, or null
  float* largest;        // [count]
  float* sums;           // [count][16], to be added up at the end
  float* factors;        // [count, to whole sixteens] of what was summed before this block
};

constexpr float kLowest = -__builtin_inff();

inline Vec lane_numbers() {
  alignas(64) static constexpr float numbers[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return load(numbers);
}

inline Vec tanh(Vec x) { return splat(1.f) - splat(2.f) / (exp(x + x) + splat(1.f)); }

// scores [rows][kKeys]: products q . k -> scores, hidden ones -infinity. Keys at position + i, groups [begin, end).
// key_scales [kKeys] or null. Returns the largest score of the row.
inline float score_row(float* scores, const ScoreRule& rule, const Rows& rows, int r, int64_t position, int begin,
                       int end, const float* key_scales) {
  const int64_t from = rows.first[r] - position, to = rows.last[r] + 1 - position;
  Vec top = splat(kLowest);
  for (int g = begin; g < end; ++g) {
    Vec x = load(scores + g * kLanes) * splat(rule.scale);
    if (key_scales) x = x * load(key_scales + g * kLanes);
    if (rule.soft_cap != 0.f) x = splat(rule.soft_cap) * tanh(x / splat(rule.soft_cap));
    const Vec index = lane_numbers() + splat(static_cast<float>(g * kLanes));
    if (rows.slopes) x = fma(splat(rows.slopes[r]), index + splat(static_cast<float>(position - rows.last[r])), x);
    if (from > g * kLanes) x = select(less(index, splat(static_cast<float>(from))), splat(kLowest), x);
    if (to < (g + 1) * kLanes) x = select(less(index, splat(static_cast<float>(to))), x, splat(kLowest));
    top = max(x, top);  // a NaN does not become the largest: it comes out of exp
    store(scores + g * kLanes, x);
  }
  return largest(top);
}

// scores -> weights [rows][kKeys] numbers of Units, times value_scales [kKeys] unless null; updates `rows`.
template <class Units>
__attribute__((noinline)) void weigh(float* scores, float* weights, const ScoreRule& rule, const Rows& rows,
                                     int64_t position, int begin, int end, const float* key_scales,
                                     const float* value_scales) {
  constexpr int width = kKeys / Units::kPerUnit;
  for (int chunk = 0; chunk < rows.count; chunk += kLanes) {
    const int stop = rows.count < chunk + kLanes ? rows.count : chunk + kLanes;
    alignas(64) float before[kLanes] = {}, shifts[kLanes] = {};
    for (int r = chunk; r < stop; ++r) {
      const float top = score_row(scores + r * kKeys, rule, rows, r, position, begin, end, key_scales);
      const float old = rows.largest[r], now = top > old ? top : old;
      before[r - chunk] = old;
      // Nothing visible yet: any finite number, so that -infinity gives exp(-infinity) and no NaN.
      shifts[r - chunk] = now == kLowest ? 0.f : now;
      rows.largest[r] = now;
    }
    store(rows.factors + chunk, exp(load(before) - load(shifts)));
    for (int r = chunk; r < stop; ++r) {
      const Vec shift = splat(shifts[r - chunk]);
      Vec sum = load(rows.sums + r * kLanes) * splat(rows.factors[r]);
      for (int g = begin; g < end; ++g) {
        Vec weight = exp(load(scores + r * kKeys + g * kLanes) - shift);
        if (value_scales) {
          Units::put(weights + r * width, g * kLanes, weight * load(value_scales + g * kLanes));
        } else {
          weight = Units::put(weights + r * width, g * kLanes, weight);  // summed as rounded, so that they add up to 1
        }
        sum = sum + weight;
      }
      store(rows.sums + r * kLanes, sum);
    }
  }
}

}  // namespace
