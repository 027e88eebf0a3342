// Norms of rows. x, residual and outputs are [rows, size] of one type, rows `stride` elements apart where a stride is
// given and contiguous otherwise; weight and bias [size] of that type, or null: ones and zeros. Sums are in fp32 and belong to one thread, so a
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

template <class T>
inline Vec load_part(const typename T::type* p, Mask m, bool whole) {
  return whole ? T::load(p) : T::load(p, m);
}
template <class T>
inline void store_part(typename T::type* p, Vec x, Mask m, bool whole) {
  whole ? T::store(p, x) : T::store(p, x, m);
}

// out = x / sqrt(mean(x^2) + eps) * (weight + offset)
template <class T>
void rms_norm_row(const typename T::type* x, const typename T::type* weight, typename T::type* out, int64_t size,
                  float eps, float offset) {
  const float squares = row_sum<T>(x, size, [](Vec sum, Vec v, Mask) { return fma(v, v, sum); });
  const Vec scale = splat(1.f / __builtin_sqrtf(squares / size + eps)), shift = splat(offset);
  for_lanes(size, [&](int64_t i, Mask m, bool whole) {
    const Vec factor = scale * (load_part<T>(weight + i, m, whole) + shift);
    store_part<T>(out + i, load_part<T>(x + i, m, whole) * factor, m, whole);
  });
}

// out = (x - mean) / sqrt(var + eps) * weight + bias. The variance is of the differences from the mean,
// not a difference of sums, which would lose its digits where the mean is large.
template <class T>
void layer_norm_row(const typename T::type* x, const typename T::type* weight, const typename T::type* bias,
                    typename T::type* out, int64_t size, float eps) {
  const float mean = row_sum<T>(x, size, [](Vec sum, Vec v, Mask) { return sum + v; }) / size;
  const Vec centre = splat(mean);
  const float squares = row_sum<T>(x, size, [&](Vec sum, Vec v, Mask m) {
    const Vec distance = select(m, v - centre, zero());
    return fma(distance, distance, sum);
  });
  const Vec scale = splat(1.f / __builtin_sqrtf(squares / size + eps));
  for_lanes(size, [&](int64_t i, Mask m, bool whole) {
    const Vec normed = (load_part<T>(x + i, m, whole) - centre) * scale;
    const Vec factor = weight ? load_part<T>(weight + i, m, whole) : splat(1.f);
    const Vec shift = bias ? load_part<T>(bias + i, m, whole) : zero();
    store_part<T>(out + i, fma(normed, factor, shift), m, whole);
  });
}

// total = a + b, rounded to the type.
template <class T>
void add_row(const typename T::type* a, const typename T::type* b, typename T::type* total, int64_t size) {
  for_lanes(size, [&](int64_t i, Mask m, bool whole) {
    store_part<T>(total + i, load_part<T>(a + i, m, whole) + load_part<T>(b + i, m, whole), m, whole);
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
      E* total = (E*)sum + r * size;
      add_row<T>((const E*)x + r * size, (const E*)residual + r * size, total, size);
      rms_norm_row<T>(total, (const E*)weight, (E*)out + r * size, size, eps, offset);
    });
  });
}

void layer_norm(const void* x, const void* weight, const void* bias, void* out, int64_t rows, int64_t size,
                int64_t stride, float eps, int32_t dtype, int32_t threads) {
  with_type(static_cast<DType>(dtype), [&](auto type) {
    using T = decltype(type);
    using E = typename T::type;
    parallel_for(rows, size * 2 * sizeof(E), threads, [&](int64_t r) {
      const E* row = (const E*)x + r * stride;
      layer_norm_row<T>(row, (const E*)weight, (const E*)bias, (E*)out + r * size, size, eps);
    });
  });
}

// sum = x + residual, rounded to the type; out = its norm.
void add_layer_norm(const void* x, const void* residual, const void* weight, const void* bias, void* out, void* sum,
                    int64_t rows, int64_t size, float eps, int32_t dtype, int32_t threads) {
  with_type(static_cast<DType>(dtype), [&](auto type) {
    using T = decltype(type);
    using E = typename T::type;
    parallel_for(rows, size * 4 * sizeof(E), threads, [&](int64_t r) {
      E* total = (E*)sum + r * size;
      add_row<T>((const E*)x + r * size, (const E*)residual + r * size, total, size);
      layer_norm_row<T>(total, (const E*)weight, (const E*)bias, (E*)out + r * size, size, eps);
    });
  });
}

}  // namespace

VLLM_KERNELS(norm) = {
    VLLM_KERNEL(rms_norm),
    VLLM_KERNEL(add_rms_norm),
    VLLM_KERNEL(layer_norm),
    VLLM_KERNEL(add_layer_norm),
    VLLM_KERNELS_END,
};
