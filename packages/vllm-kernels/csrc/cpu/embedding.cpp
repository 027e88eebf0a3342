// Rows of a table by their numbers.
#include "ids.h"
#include "parallel.h"
#include "vec.h"

namespace {

// out[t] = table[ids[t]] * scale: table [rows, size], out [tokens, size], both contiguous. Without a scale (1) rows are
// copied. Returns 0, or 1 and writes nothing when an id lies outside of the table.
int32_t embed(const int64_t* ids, const void* table, void* out, int64_t tokens, int64_t rows, int64_t size, float scale,
              int32_t dtype, int32_t threads) {
  if (!all_inside(ids, tokens, rows)) return 1;
  with_type(static_cast<DType>(dtype), [&](auto type) {
    using T = decltype(type);
    using E = typename T::type;
    parallel_for(tokens, size * 2 * sizeof(E), threads, [&](int64_t t) {
      const E* row = (const E*)table + ids[t] * size;
      E* to = (E*)out + t * size;
      if (scale == 1.f) {
        __builtin_memcpy(to, row, size * sizeof(E));
        return;
      }
      for_lanes(size, [&](int64_t i, Mask m, bool whole) {
        if (whole)
          T::store(to + i, T::load(row + i) * splat(scale));
        else
          T::store(to + i, T::load(row + i, m) * splat(scale), m);
      });
    });
  });
  return 0;
}

}  // namespace

VLLM_KERNELS(embedding) = {
    VLLM_KERNEL(embed),
    VLLM_KERNELS_END,
};
