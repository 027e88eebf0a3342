// From rows of logits to tokens. logits are [rows, size] fp32, contiguous; a row that holds NaN or +inf, or nothing but
// -inf, gives -1. Each row is one thread's work and depends on nothing else.
#include "parallel.h"
#include "sampling_rank.h"

namespace {

thread_local Buffer buffer;

// Calls body(row, scratch) for each of `count` rows; the next one goes to the thread that is free, as rows differ in
// cost.
template <class Body>
void for_rows(int64_t count, int64_t size, int threads, const Body& body) {
  if (count < 2 || count * size * 4 < 2 * kMinBytesPerThread) threads = 1;
  int64_t next = 0;
  run_team(threads, [&](int, int) {
    Scratch scratch(buffer, size);
    for (int64_t r; (r = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < count;) body(r, scratch);
  });
}

Row row_of(const float* logits, int64_t size, double temperature, const Scratch& scratch) {
  // The reciprocal of a tiny temperature is infinite, and 0 times infinity is not 0.
  const double scale = 1 / temperature;
  const float finite = scale < __FLT_MAX__ ? static_cast<float>(scale) : __FLT_MAX__;
  return {logits, size, scratch.block_largest, scratch.block_sums, 0, finite};
}

// Arguments of sample: for each row; see vllm_kernels/ops/sampling.py.
struct Filters {
  const float* temperature;
  const int64_t* top_k;
  const double *top_p, *min_p;
};

bool has_filter(const Filters& filters, int64_t r, int64_t size) {
  const int64_t top_k = filters.top_k[r];
  return filters.min_p[r] > 0 || (top_k > 0 && top_k < size) || filters.top_p[r] < 1;
}

Kept filter(const Row& row, const Filters& filters, int64_t r, Scratch& scratch) {
  return filter(row, filters.temperature[r], filters.top_k[r], filters.top_p[r], filters.min_p[r], scratch);
}

// scan, with all sums or without.
void scan_for(Row& row, bool sums) {
  if (sums) {
    scan<true>(row);
    if (row.usable()) rescale_sums(row);
  } else {
    scan<false>(row);
  }
}

void greedy(const float* logits, int64_t* out, int64_t rows, int64_t size, int32_t threads) {
  for_rows(rows, size, threads, [&](int64_t r, Scratch& scratch) {
    Row row = row_of(logits + r * size, size, 1, scratch);
    scan<false>(row);
    out[r] = row.usable() ? first_of_largest(row) : -1;
  });
}

void sample(const float* logits, const float* temperature, const int64_t* top_k, const double* top_p,
            const double* min_p, const double* uniforms, int64_t* out, int64_t rows, int64_t size, int32_t threads) {
  const Filters filters = {temperature, top_k, top_p, min_p};
  for_rows(rows, size, threads, [&](int64_t r, Scratch& scratch) {
    const bool certain = temperature[r] == 0;
    Row row = row_of(logits + r * size, size, certain ? 1 : temperature[r], scratch);
    const bool all = !certain && !has_filter(filters, r, size);
    scan_for(row, all);
    if (!row.usable())
      out[r] = -1;
    else if (certain)
      out[r] = first_of_largest(row);
    else
      out[r] = all ? pick_of_all(row, uniforms[r]) : pick_of_kept(row, filter(row, filters, r, scratch), uniforms[r]);
  });
}

// out [rows, size]: divided by the temperature, -inf where the filters drop a token; as it is where nothing is drawn.
void filter_logits(const float* logits, const float* temperature, const int64_t* top_k, const double* top_p,
                   const double* min_p, float* out, int64_t rows, int64_t size, int32_t threads) {
  const Filters filters = {temperature, top_k, top_p, min_p};
  for_rows(rows, size, threads, [&](int64_t r, Scratch& scratch) {
    const bool certain = temperature[r] == 0;
    Row row = row_of(logits + r * size, size, certain ? 1 : temperature[r], scratch);
    scan<false>(row);
    if (certain || !row.usable()) {
      __builtin_memcpy(out + r * size, row.logits, size * sizeof(float));
      return;
    }
    const Cut cut = has_filter(filters, r, size) ? filter(row, filters, r, scratch).cut : kKeepAll;
    const float below = __builtin_nextafterf(cut.value, -kInfinity);
    const Vec divisor = splat(temperature[r]), impossible = splat(-kInfinity);
    for_logits(row.logits, 0, size, [&](int64_t i, Vec x) VLLM_INLINE {
      const Vec result = select(kept_lanes(cut, below, x, i), x / divisor, impossible);
      if (i + kLanes <= size)
        store(out + r * size + i, result);
      else
        store(out + r * size + i, result, first(static_cast<int>(size - i)));
    });
  });
}

// ids [rows, k + 1]: the given token, then the k most likely; logprobs [rows, k + 1] of these; ranks [rows].
// `entries` has room for 2 k Ranked for each row. A row with NaN or +inf, or nothing but -inf, has logprobs of NaN;
// one with NaN has no order, and its ids are the first ones. Returns a row whose token is none, which is left out; -1
// if there is none.
int64_t top_logprobs(const float* logits, const int64_t* tokens, int64_t* ids, float* logprobs, int64_t* ranks,
                     void* entries, int64_t k, int64_t rows, int64_t size, int32_t threads) {
  int64_t outside = -1;
  for_rows(rows, size, threads, [&](int64_t r, Scratch& scratch) {
    if (tokens[r] < 0 || tokens[r] >= size) {
      __atomic_store_n(&outside, r, __ATOMIC_RELAXED);
      return;
    }
    Row row = row_of(logits + r * size, size, 1, scratch);
    scan_for(row, true);
    int64_t* const own = ids + r * (k + 1);
    own[0] = tokens[r];
    const bool ordered = row.largest == row.largest;
    const double log_of_sum = row.usable() ? log_of_total(row) : __builtin_nan("");
    ranks[r] = 1 + (ordered ? count_larger(row, row.logits[own[0]]) : 0);
    if (k > 0 && ordered) {
      Ranked* const space = static_cast<Ranked*>(entries) + r * 2 * k;
      top_columns(row, k, space, space + k, scratch, own + 1);
    } else {
      for (int64_t i = 0; i < k; ++i) own[i + 1] = i;
    }
    for (int64_t i = 0; i <= k; ++i)
      logprobs[r * (k + 1) + i] = static_cast<float>(row.logits[own[i]] - log_of_sum);
  });
  return outside;
}

}  // namespace

VLLM_KERNELS(sampling) = {
    VLLM_KERNEL(greedy),
    VLLM_KERNEL(sample),
    VLLM_KERNEL(filter_logits),
    VLLM_KERNEL(top_logprobs),
    VLLM_KERNELS_END,
};
