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

template <class T>
inline Vec load_part(const typename T::type* p, Mask m, bool whole) {
  return whole ? T::load(p) : T::load(p, m);
}
template <class T>
inline void store_part(typename T::type* p, Vec x, Mask m, bool whole) {
  whole ? T::store(p, x) : T::store(p, x, m);
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

// 1 / sqrt(mean(x^2) + eps) of a head.
template <class T>
float norm_scale(const typename T::type* x, int64_t size, float eps) {
  Vec squares[2] = {zero(), zero()};
  int64_t i = 0;
  for (; i + 2 * kLanes <= size; i += 2 * kLanes) {
    const Vec a = T::load(x + i), b = T::load(x + i + kLanes);
    squares[0] = fma(a, a, squares[0]);
    squares[1] = fma(b, b, squares[1]);
  }
  for_lanes(size - i, [&](int64_t k, Mask m, bool whole) {
    const Vec v = load_part<T>(x + i + k, m, whole);
    squares[0] = fma(v, v, squares[0]);
  });
  return 1.f / __builtin_sqrtf(sum(squares[0] + squares[1]) / size + eps);
}

// One head from its type to another, or in place: normalised where there is a weight, its first dimensions rotated where
// there are angles.
template <class T, class Out, bool Normed>
void treat_head(const typename T::type* x, typename Out::type* out, int64_t size, const float* weight, float eps,
                const Angles* angles) {
  const Vec scale = splat(Normed ? norm_scale<T>(x, size, eps) : 1.f);
  const auto at = [&](int64_t i, Mask m, bool whole) {
    const Vec v = load_part<T>(x + i, m, whole);
    return Normed ? v * scale * load_part<F32>(weight + i, m, whole) : v;
  };
  const int64_t turned = angles ? angles->rotary_dim : 0;
  if (angles && angles->interleaved) {
    for_lanes(turned, [&](int64_t i, Mask m, bool whole) {
      const Vec v = at(i, m, whole);
      const Vec cross = swap_pairs(v) * load_part<F32>(angles->sin + i, m, whole);
      store_part<Out>(out + i, fma(v, load_part<F32>(angles->cos + i, m, whole), cross), m, whole);
    });
  } else if (angles) {
    const int64_t half = turned / 2;
    for_lanes(half, [&](int64_t i, Mask m, bool whole) {
      const Vec a = at(i, m, whole), b = at(half + i, m, whole);
      const Vec cos = load_part<F32>(angles->cos + i, m, whole), sin = load_part<F32>(angles->sin + i, m, whole);
      store_part<Out>(out + i, fnma(b, sin, a * cos), m, whole);
      store_part<Out>(out + half + i, fma(a, sin, b * cos), m, whole);
    });
  }
  for_lanes(size - turned, [&](int64_t i, Mask m, bool whole) {
    store_part<Out>(out + turned + i, at(turned + i, m, whole), m, whole);
  });
}

template <class T, class Out>
void treat_head(const typename T::type* x, typename Out::type* out, int64_t size, const float* weight, float eps,
                const Angles* angles) {
  if (weight)
    treat_head<T, Out, true>(x, out, size, weight, eps, angles);
  else
    treat_head<T, Out, false>(x, out, size, weight, eps, angles);
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
  const RowStore rows(*cache);
  const int64_t size = cache->head_dim, row_bytes = rows.row_bytes, kv_heads = cache->heads;
  with_type(static_cast<DType>(type), [&](auto element) {
    using T = decltype(element);
    using E = typename T::type;
    const bool same_type = cache->storage == static_cast<DType>(type);
    alignas(64) float q_weights[kMaxHeadDim], k_weights[kMaxHeadDim];
    const float* q_weight = widen_weight(q_norm, read_row<T>, offset, q_weights, size);
    const float* k_weight = widen_weight(k_norm, read_row<T>, offset, k_weights, size);
    parallel_for(tokens, (heads + kv_heads * 2) * 2 * size * sizeof(E), threads, [&](int64_t t) {
      Angles turn;
      if (cos_sin) turn.set(cos_sin + positions[t] * rotary_dim, rotary_dim, interleaved);
      const Angles* angles = cos_sin ? &turn : nullptr;
      E* const query = (E*)qkv + t * stride;
      if (angles || q_weight)
        for (int64_t h = 0; h < heads; ++h)
          treat_head<T, T>(query + h * size, query + h * size, size, q_weight, eps, angles);
      if (slots[t] < 0) return;
      alignas(64) float x[kMaxHeadDim];
      const E *key = query + heads * size, *value = key + kv_heads * size;
      int64_t row = cache->first_row(slots[t]);
      for (int64_t h = 0; h < kv_heads; ++h, key += size, value += size, row += cache->block_size) {
        if (same_type) {
          treat_head<T, T>(key, (E*)(cache->key + row * row_bytes), size, k_weight, eps, angles);
          __builtin_memcpy(cache->value + row * row_bytes, value, row_bytes);
          continue;
        }
        treat_head<T, F32>(key, x, size, k_weight, eps, angles);
        rows.put(x, cache->key, cache->key_scale, row, size);
        read_row<T>(value, x, size);
        rows.put(x, cache->value, cache->value_scale, row, size);
      }
    });
  });
  return kDone;
}

}  // namespace

VLLM_KERNELS(rotary) = {
    VLLM_KERNEL(rope_and_cache),
    VLLM_KERNELS_END,
};
