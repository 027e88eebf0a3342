// Sums of two tensors.
#include "parallel.h"
#include "vec.h"

namespace {

constexpr int64_t kPiece = 4096;

// out = a + b, each [count] of one type; rounded once.
void add(const void* a, const void* b, void* out, int64_t count, int32_t dtype, int32_t threads) {
  with_type(static_cast<DType>(dtype), [&](auto type) {
    using T = decltype(type);
    using E = typename T::type;
    parallel_for((count + kPiece - 1) / kPiece, 3 * kPiece * sizeof(E), threads, [&](int64_t piece) {
      const int64_t start = piece * kPiece, size = count - start < kPiece ? count - start : kPiece;
      const E *x = (const E*)a + start, *y = (const E*)b + start;
      E* sum = (E*)out + start;
      for_lanes(size, [&](int64_t i, Mask m, bool whole) {
        if (whole)
          T::store(sum + i, T::load(x + i) + T::load(y + i));
        else
          T::store(sum + i, T::load(x + i, m) + T::load(y + i, m), m);
      });
    });
  });
}

}  // namespace

VLLM_KERNELS(add) = {VLLM_KERNEL(add), VLLM_KERNELS_END};
