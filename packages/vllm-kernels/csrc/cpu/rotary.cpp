// Between the projection to queries, keys and values and the attention to them: norm and rotation of heads, and the
// cache. One pass over the rows of the projection, each head in fp32 from its load to its rounding.
#include "kv_row.h"
#include "parallel.h"

namespace {

#if defined(__AVX512F__)
inline Vec swap_pairs(Vec x) { return {_mm512_permute_ps(x.v, 0xb1)}; }
#else
inline Vec swap_pairs(Vec x) { return {_mm256_permute_ps(x.lo, 0xb1), _mm256_permute_ps(x.hi, 0xb1)}; }
#endif

inline Vec load_part(const float* p, Mask m, bool whole) { return whole ? load(p) : load(p, m); }
inline void store_part(float* p, Vec x, Mask m, bool whole) { whole ? store(p, x) : store(p, x, m); }

// x = x / sqrt(mean(x^2) + eps) * weight, in place, all in fp32.
void norm_head(float* x, const float* weight, int64_t size, float eps) {
  Vec squares = zero();
  for_lanes(size, [&](int64_t i, Mask m, bool whole) {
    const Vec v = load_part(x + i, m, whole);
    squares = fma(v, v, squares);
  });
  const Vec scale = splat(1.f / __builtin_sqrtf(sum(squares) / size + eps));
  for_lanes(size, [&](int64_t i, Mask m, bool whole) {
    store_part(x + i, load_part(x + i, m, whole) * scale * load_part(weight + i, m, whole), m, whole);
  });
}

// Cosines and sines of a token, laid out as its heads need them.
struct Angles {
  const float *cos, *sin;
  int64_t rotary_dim;
  bool interleaved;
  alignas(64) float spread[2 * kMaxHeadDim];  // interleaved: c0 c0 c1 c1 ..., then -s0 s0 -s1 s1 ...

  void set(const float* table_row, int64_t dim, bool pairs_interleaved) {
    rotary_dim = dim;
    interleaved = pairs_interleaved;
    const int64_t half = dim / 2;
    cos = table_row;
    sin = table_row + half;
    if (!interleaved) return;
    for (int64_t i = 0; i < half; ++i) {
      spread[2 * i] = spread[2 * i + 1] = table_row[i];
      spread[dim + 2 * i] = -table_row[half + i];
      spread[dim + 2 * i + 1] = table_row[half + i];
    }
    cos = spread;
    sin = spread + dim;
  }
};

// Rotates the first rotary_dim entries of a head in place.
void rotate_head(float* x, const Angles& angles) {
  if (angles.interleaved) {
    for_lanes(angles.rotary_dim, [&](int64_t i, Mask m, bool whole) {
      const Vec v = load_part(x + i, m, whole);
      const Vec turned = swap_pairs(v) * load_part(angles.sin + i, m, whole);
      store_part(x + i, fma(v, load_part(angles.cos + i, m, whole), turned), m, whole);
    });
    return;
  }
  const int64_t half = angles.rotary_dim / 2;
  for_lanes(half, [&](int64_t i, Mask m, bool whole) {
    const Vec a = load_part(x + i, m, whole), b = load_part(x + half + i, m, whole);
    const Vec cos = load_part(angles.cos + i, m, whole), sin = load_part(angles.sin + i, m, whole);
    store_part(x + i, fnma(b, sin, a * cos), m, whole);
    store_part(x + half + i, fma(a, sin, b * cos), m, whole);
  });
}

// A norm's weight in fp32, offset included; null stays null.
const float* widen_weight(const void* weight, ReadRow read, float offset, float* out, int64_t size) {
  if (!weight) return nullptr;
  read(weight, out, size);
  for (int64_t i = 0; i < size; ++i) out[i] += offset;
  return out;
}

// What the kernel may refuse; vllm_kernels/cpu/rotary.py raises the errors.
enum Refusal : int32_t { kDone = 0, kPositionOutside = 1, kSlotOutside = 2 };

// qkv [tokens, heads + 2 cache heads, head_dim], rows `stride` elements apart: query heads are normalised (q_norm
// [head_dim], null: not) and rotated in place; key heads (k_norm likewise) go to the cache so treated, value heads as
// they are. cos_sin [max_position, rotary_dim], cosines then sines, null: no rotation. slots [tokens]: negative ones are
// left out. Writes nothing unless all positions and slots are inside.
int32_t rope_and_cache(void* qkv, int64_t stride, int64_t tokens, int64_t heads, const CacheView* cache,
                       const int64_t* positions, const float* cos_sin, int64_t max_position, int64_t rotary_dim,
                       const int64_t* slots, const void* q_norm, const void* k_norm, float eps, float offset,
                       int32_t interleaved, int32_t type, int32_t threads) {
  if (cos_sin) {
    bool inside = true;
    for (int64_t t = 0; t < tokens; ++t) inside &= positions[t] >= 0 && positions[t] < max_position;
    if (!inside) return kPositionOutside;
  }
  if (!cache->has_slots(slots, tokens)) return kSlotOutside;
  const DType dtype = static_cast<DType>(type);
  const ReadRow read = reader(dtype);
  const StoreRow write = writer(dtype, false);
  const RowStore rows(*cache);
  const int64_t size = cache->head_dim, head_bytes = size * bytes_of(dtype);
  const bool same_type = cache->storage == dtype;
  alignas(64) float q_weights[kMaxHeadDim], k_weights[kMaxHeadDim];
  const float* q_weight = widen_weight(q_norm, read, offset, q_weights, size);
  const float* k_weight = widen_weight(k_norm, read, offset, k_weights, size);
  const int64_t row_bytes = stride * bytes_of(dtype);
  parallel_for(tokens, (heads + cache->heads * 2) * 2 * head_bytes, threads, [&](int64_t t) {
    alignas(64) float x[kMaxHeadDim];
    Angles angles;
    if (cos_sin) angles.set(cos_sin + positions[t] * rotary_dim, rotary_dim, interleaved);
    const auto prepare = [&](const char* from, const float* weight) {
      read(from, x, size);
      if (weight) norm_head(x, weight, size, eps);
      if (cos_sin) rotate_head(x, angles);
    };
    char* head = (char*)qkv + t * row_bytes;
    if (cos_sin || q_weight) {
      for (int64_t h = 0; h < heads; ++h) {
        prepare(head + h * head_bytes, q_weight);
        write(x, head + h * head_bytes, nullptr, size);
      }
    }
    if (slots[t] < 0) return;
    head += heads * head_bytes;
    const bool keys_change = cos_sin || k_weight;
    int64_t row = cache->first_row(slots[t]);
    for (int64_t h = 0; h < cache->heads; ++h, row += cache->block_size) {
      const char *key = head + h * head_bytes, *value = key + cache->heads * head_bytes;
      if (keys_change || !same_type) {
        prepare(key, k_weight);
        rows.put(x, cache->key, cache->key_scale, row, size);
      } else {
        __builtin_memcpy(cache->key + row * rows.row_bytes, key, rows.row_bytes);
      }
      if (same_type) {
        __builtin_memcpy(cache->value + row * rows.row_bytes, value, rows.row_bytes);
      } else {
        read(value, x, size);
        rows.put(x, cache->value, cache->value_scale, row, size);
      }
    }
  });
  return kDone;
}

}  // namespace

VLLM_KERNELS(rotary) = {
    {"rope_and_cache", (void*)rope_and_cache},
    VLLM_KERNELS_END,
};
