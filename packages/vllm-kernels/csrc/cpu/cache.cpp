// Keys and values of new tokens into the paged cache.
#include "kv_row.h"
#include "parallel.h"

namespace {

// One of the two: x[token][head] is [head_dim] entries of `type`, strides in elements.
struct Source {
  const char* x;
  int64_t token_stride, head_stride;
};

// key and value [tokens, heads, head_dim] with strides; slots [tokens], negative: left out. Returns 0, or 1 and writes
// nothing when a slot lies outside of the cache.
int32_t write_kv(const CacheView* cache, const void* key, int64_t key_token, int64_t key_head, const void* value,
                 int64_t value_token, int64_t value_head, const int64_t* slots, int64_t tokens, int32_t type,
                 int32_t threads) {
  if (!cache->has_slots(slots, tokens)) return 1;
  const DType dtype = static_cast<DType>(type);
  const ReadRow read = reader(dtype);
  const RowStore rows(*cache);
  const int64_t size = cache->head_dim, item = bytes_of(dtype);
  const bool copied = cache->storage == dtype;
  const Source sources[2] = {{(const char*)key, key_token, key_head}, {(const char*)value, value_token, value_head}};
  parallel_for(tokens, cache->heads * 2 * (size * item + rows.row_bytes), threads, [&](int64_t t) {
    if (slots[t] < 0) return;
    alignas(64) float x[kMaxHeadDim];
    for (int which = 0; which < 2; ++which) {
      const Source& from = sources[which];
      char* entries = which ? cache->value : cache->key;
      float* scales = which ? cache->value_scale : cache->key_scale;
      int64_t row = cache->first_row(slots[t]);
      for (int64_t h = 0; h < cache->heads; ++h, row += cache->block_size) {
        const char* head = from.x + (t * from.token_stride + h * from.head_stride) * item;
        if (copied) {
          __builtin_memcpy(entries + row * rows.row_bytes, head, rows.row_bytes);
          continue;
        }
        read(head, x, size);
        rows.put(x, entries, scales, row, size);
      }
    }
  });
  return 0;
}

}  // namespace

VLLM_KERNELS(cache) = {
    VLLM_KERNEL(write_kv),
    VLLM_KERNELS_END,
};
