// One head's row on its way: [size] entries from an activation to fp32, and from fp32 to the cache, the types chosen at
// run time by a pointer each. A template over both types would be compiled eighteen times.
#pragma once

#include "kv_format.h"

namespace {

constexpr int kMaxHeadDim = 1024;  // of rows on the stack; Python sends wider heads elsewhere

using ReadRow = void (*)(const void* row, float* out, int64_t size);
// `scale` is null for formats without scales.
using StoreRow = void (*)(const float* x, void* row, float* scale, int64_t size);

template <class T>
void read_row(const void* row, float* out, int64_t size) {
  const auto* x = (const typename T::type*)row;
  for_lanes(size, [&](int64_t i, Mask m, bool whole) {
    if (whole)
      store(out + i, T::load(x + i));
    else
      store(out + i, T::load(x + i, m), m);
  });
}

template <class T>
void store_row(const float* x, void* row, float*, int64_t size) {
  store_plain<T>(x, (typename T::type*)row, size);
}

template <class T>
void store_scaled_row(const float* x, void* row, float* scale, int64_t size) {
  store_scaled<T>(x, (typename T::type*)row, scale, size);
}

inline ReadRow reader(DType dtype) {
  ReadRow found = nullptr;
  with_type(dtype, [&](auto type) { found = read_row<decltype(type)>; });
  return found;
}

inline StoreRow writer(DType storage, bool scaled) {
  if (scaled) return storage == DType::i8 ? store_scaled_row<I8> : store_scaled_row<E4M3>;
  StoreRow found = nullptr;
  with_storage(storage, [&](auto type) { found = store_row<decltype(type)>; });
  return found;
}

inline int64_t bytes_of(DType dtype) {
  return dtype == DType::f32 ? 4 : dtype == DType::bf16 || dtype == DType::f16 ? 2 : 1;
}

// The cache of one layer as Python hands it over: entries [num_blocks, heads, block_size, head_dim] and, if not null,
// scales [num_blocks, heads, block_size].
struct CacheView {
  char *key, *value;
  float *key_scale, *value_scale;
  int64_t num_blocks, heads, block_size, head_dim;
  DType storage;

  bool has_slots(const int64_t* slots, int64_t count) const {
    const int64_t end = num_blocks * block_size;
    bool inside = true;
    for (int64_t i = 0; i < count; ++i) inside &= slots[i] < end;
    return inside;
  }
  // Which of the [num_blocks * heads * block_size] rows is the first head's at a slot; the others' follow `block_size`
  // rows apart.
  int64_t first_row(int64_t slot) const { return slot + slot / block_size * block_size * (heads - 1); }
};

// Stores rows of one format: `put` the entries, to row `row` of `entries` and `scales`.
struct RowStore {
  StoreRow store;
  int64_t row_bytes;

  explicit RowStore(const CacheView& cache)
      : store(writer(cache.storage, cache.key_scale)), row_bytes(cache.head_dim * bytes_of(cache.storage)) {}
  void put(const float* x, char* entries, float* scales, int64_t row, int64_t size) const {
    store(x, entries + row * row_bytes, scales ? scales + row : nullptr, size);
  }
};

}  // namespace
