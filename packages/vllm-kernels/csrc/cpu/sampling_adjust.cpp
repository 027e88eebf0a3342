// Changes of single logits, in place, given sparsely: entry i is the logit of row rows[i] and token tokens[i] in
// logits [num_rows, size] fp32, contiguous. Each returns the number of an entry that lies outside of them, which
// changes nothing; -1 if there is none.
#include "parallel.h"
#include "sampling_lanes.h"

namespace {

struct Logits {
  float* values;
  int64_t num_rows, size;

  float* at(int64_t row, int64_t token) const {
    const bool there = static_cast<uint64_t>(row) < static_cast<uint64_t>(num_rows) &&
                       static_cast<uint64_t>(token) < static_cast<uint64_t>(size);
    return there ? values + row * size + token : nullptr;
  }
};

template <class Change>
int64_t for_entries(Logits logits, const int64_t* rows, const int64_t* tokens, int64_t count, const Change& change) {
  int64_t outside = -1;
  for (int64_t i = 0; i < count; ++i) {
    float* const logit = logits.at(rows[i], tokens[i]);
    if (logit)
      change(i, *logit);
    else
      outside = i;
  }
  return outside;
}

// The tokens of rows[r] are entries offsets[r] to offsets[r + 1] of token_counts [entries, 2]: a token and how often
// it is in the output. Penalties [rows].
int64_t apply_penalties(float* values, const int64_t* rows, const int64_t* offsets, const int32_t* token_counts,
                        const float* repetition, const float* presence, const float* frequency, int64_t count,
                        int64_t num_rows, int64_t size, int32_t threads) {
  const Logits logits = {values, num_rows, size};
  const int64_t entries = offsets[count];
  int64_t outside = -1;
  // An entry touches a cache line of its own.
  parallel_for(count, (count ? entries / count + 1 : 0) * 64, threads, [&](int64_t r) {
    const float factor = repetition[r], once = presence[r], each = frequency[r];
    if (offsets[r] < 0 || offsets[r + 1] > entries) {
      __atomic_store_n(&outside, offsets[r] < 0 ? 0 : offsets[r], __ATOMIC_RELAXED);
      return;
    }
    for (int64_t i = offsets[r]; i < offsets[r + 1]; ++i) {
      float* const logit = logits.at(rows[r], token_counts[2 * i]);
      if (!logit) {
        __atomic_store_n(&outside, i, __ATOMIC_RELAXED);
        continue;
      }
      const float times = static_cast<float>(token_counts[2 * i + 1]), old = *logit;
      *logit = (old > 0 ? old / factor : old * factor) - each * times - (times > 0 ? once : 0.f);
    }
  });
  return outside;
}

int64_t apply_bias(float* values, const int64_t* rows, const int64_t* tokens, const float* bias, int64_t count,
                   int64_t num_rows, int64_t size) {
  return for_entries({values, num_rows, size}, rows, tokens, count,
                     [&](int64_t i, float& logit) { logit += bias[i]; });
}

int64_t mask_tokens(float* values, const int64_t* rows, const int64_t* tokens, int64_t count, int64_t num_rows,
                    int64_t size) {
  return for_entries({values, num_rows, size}, rows, tokens, count,
                     [](int64_t, float& logit) { logit = -kInfinity; });
}

// Every other token of the entries' rows becomes impossible. `kept` [count] is room for the logits that stay. If an
// entry is outside, nothing changes.
int64_t keep_tokens(float* values, const int64_t* rows, const int64_t* tokens, float* kept, int64_t count,
                    int64_t num_rows, int64_t size, int32_t threads) {
  const Logits logits = {values, num_rows, size};
  const int64_t outside =
      for_entries(logits, rows, tokens, count, [&](int64_t i, float& logit) { kept[i] = logit; });
  if (outside >= 0) return outside;
  for (int64_t i = 0; i < count; ++i) {
    if (i > 0 && rows[i] == rows[i - 1]) continue;
    float* const row = values + rows[i] * size;
    constexpr int64_t kPart = 4096;
    parallel_for((size + kPart - 1) / kPart, kPart * 4, threads, [&](int64_t part) {
      const int64_t end = part * kPart + kPart < size ? part * kPart + kPart : size;
      for (int64_t k = part * kPart; k < end; ++k) row[k] = -kInfinity;
    });
  }
  return for_entries(logits, rows, tokens, count, [&](int64_t i, float& logit) { logit = kept[i]; });
}

}  // namespace

VLLM_KERNELS(sampling_adjust) = {
    VLLM_KERNEL(apply_penalties),
    VLLM_KERNEL(apply_bias),
    VLLM_KERNEL(mask_tokens),
    VLLM_KERNEL(keep_tokens),
    VLLM_KERNELS_END,
};
