// Norms of rows. x, residual and outputs are [rows, size] of one type, rows `stride` elements apart where a stride is
// given and contiguous otherwise; weight and bias [size] of that type. Sums are in fp32 and belong to one thread, so a
// row's result depends on that row alone.
#include "parallel.h"
#include "vec.h"

namespace {

// The sum over a row of value(x) in four chains, added up in a fixed order.
template <class T, class Value>
float row_sum(const typename T::type* x, int64_t size, const Value& value) {
  Vec sums[4] = {zero(), zero(), zero(), zero()};
  int64_t i = 0;
  for (; i + 4 * kLanes <= size; i += 4 * kLanes)
    for (int k = 0; k < 4; ++k) sums[k] = value(sums[k], T::load(x + i + k * kLanes), first(kLanes));
  for (; i + kLanes <= size; i += kLanes) sums[0] = value(sums[0], T::load(x + i), first(kLanes));
  if (i < size) sums[0] = value(sums[0], T::load(x + i, first(size - i)), first(size - i));
  return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// out = x / sqrt(mean(x^2) + eps) * (weight + offset)
template <class T>
void rms_norm_row(const typename T::type* x, const typename T::type* weight, typename T::type* out, int64_t size,
                  float eps, float offset) {
  const float squares = row_sum<T>(x, size, [](Vec sum, Vec v, Mask) { return fma(v, v, sum); });
  const Vec scale = splat(1.f / __builtin_sqrtf(squares / size + eps)), shift = splat(offset);
  for_lanes(size, [&](int64_t i, Mask m, bool whole) {
    if (whole)
      T::store(out + i, T::load(x + i) * scale * (T::load(weight + i) + shift));
    else
      T::store(out + i, T::load(x + i, m) * scale * (T::load(weight + i, m) + shift), m);
  });
}

void rms_norm(const void* x, const void* weight, void* out, int64_t rows, int64_t size, int64_t stride, float eps,
              float offset, int32_t dtype, int32_t threads) {
  with_type(static_cast<DType>(dtype), [&](auto type) {
    using T = decltype(type);
    using E = typename T::type;
    parallel_for(rows, size * 2 * sizeof(E), threads, [&](int64_t r) {
      rms_norm_row<T>((const E*)x + r * stride, (const E*)weight, (E*)out + r * size, size, eps, offset);
    });
  });
}

// sum = x + residual, rounded to the type; out = its norm.
void add_rms_norm(const void* x, const void* residual, const void* weight, void* out, void* sum, int64_t rows,
                  int64_t size, float eps, float offset, int32_t dtype, int32_t threads) {
  with_type(static_cast<DType>(dtype), [&](auto type) {
    using T = decltype(type);
    using E = typename T::type;
    parallel_for(rows, size * 4 * sizeof(E), threads, [&](int64_t r) {
      const E *a = (const E*)x + r * size, *b = (const E*)residual + r * size;
      E* total = (E*)sum + r * size;
      for_lanes(size, [&](int64_t i, Mask m, bool whole) {
        if (whole)
          T::store(total + i, T::load(a + i) + T::load(b + i));
        else
          T::store(total + i, T::load(a + i, m) + T::load(b + i, m), m);
      });
      rms_norm_row<T>(total, (const E*)weight, (E*)out + r * size, size, eps, offset);
    });
  });
}

}  // namespace

VLLM_KERNELS(norm) = {
    {"rms_norm", (void*)rms_norm},
    {"add_rms_norm", (void*)add_rms_norm},
    VLLM_KERNELS_END,
};
