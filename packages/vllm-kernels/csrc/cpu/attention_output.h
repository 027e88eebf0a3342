// From the sums of splits to outputs.
#pragma once

#include "attention_plan.h"

namespace {

// into += from, of the split that follows.
void fold(const Partial& into, const Partial& from, int rows, int width) {
  for (int r = 0; r < rows; r += kLanes) {
    const Vec a = load(into.largest + r), b = load(from.largest + r), top = max(a, b);
    const Vec shift = select(less(top, splat(-3e38f)), zero(), top);  // -infinity: neither split has seen anything
    const Vec scale_a = exp(a - shift), scale_b = exp(b - shift);
    store(into.largest + r, top);
    store(into.total + r, load(into.total + r) * scale_a + load(from.total + r) * scale_b);
    alignas(64) float factors_a[kLanes], factors_b[kLanes];
    store(factors_a, scale_a);
    store(factors_b, scale_b);
    for (int k = 0; k < kLanes && r + k < rows; ++k) {
      float* x = into.sums + static_cast<int64_t>(r + k) * width;
      const float* y = from.sums + static_cast<int64_t>(r + k) * width;
      const Vec factor_a = splat(factors_a[k]), factor_b = splat(factors_b[k]);
      for (int i = 0; i < width; i += kLanes) store(x + i, load(x + i) * factor_a + load(y + i) * factor_b);
    }
  }
}

// Columns [from, from + 16 units) of a row of sums, those that there are, times `factor` -> to, in the order of head_dim.
template <class Units, class T>
inline void store_columns(const float* sums, int from, int head_dim, Vec factor, typename T::type* to) {
  const int left = head_dim - from;
#if defined(__AVX512BF16__)
  if constexpr (Units::kPerUnit == 2) {
    const Vec lo = load(sums + from) * factor, hi = load(sums + from + kLanes) * factor;
    const __m512i packed = (__m512i)_mm512_cvtne2ps_pbh(hi.v, lo.v);
    // Fours of columns, which interleaving pairs of keys has put into lo and hi in turn.
    const __m512i ordered = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), packed);
    _mm512_mask_storeu_epi16(to + from, left < 32 ? (1u << left) - 1 : ~0u, ordered);
    return;
  }
#endif
  const Vec x = load(sums + from) * factor;
  if (left >= kLanes)
    T::store(to + from, x);
  else
    T::store(to + from, x, first(left));
}

// Sums over all splits -> outputs.
template <class Units>
void finish(const Task& task, const Item& item, const Partial& partial) {
  const int width = padded_dim<Units>(task.head_dim);
  with_query_type<Units>(task, [&](auto type) {
    using T = decltype(type);
    for_each_row(task, item.seq, item.head, item.row, item.rows, [&](int r, int64_t token, int head, int64_t) {
      float factor = 1.f / partial.total[r];
      if (task.sinks) {
        const float sink = task.sinks[head], own = partial.largest[r], top = sink > own ? sink : own;
        alignas(64) float scaled[kLanes] = {own - top, sink - top};
        store(scaled, exp(load(scaled)));
        factor = scaled[0] / (partial.total[r] * scaled[0] + scaled[1]);
      }
      auto* to = (typename T::type*)task.out + (token * task.num_heads + head) * task.head_dim;
      const float* sums = partial.sums + static_cast<int64_t>(r) * width;
      for (int i = 0; i < task.head_dim; i += kLanes * Units::kPerUnit)
        store_columns<Units, T>(sums, i, task.head_dim, splat(factor), to);
    });
  });
}

}  // namespace
