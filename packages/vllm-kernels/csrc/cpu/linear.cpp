// Projections: packing weights, multiplying them, and giving their rows back as an embedding table has them.
#include "gemm.h"
#include "ids.h"
#include "pack_rows.h"
#include "parallel.h"
#include "vec.h"
#if defined(__AMX_TILE__)
#include "gemm_amx.h"
#endif

namespace {

// With fewer rows vectors read weights a little faster than tiles.
constexpr int64_t kMinAmxRows = 3;

// A result that the caches do not hold is written past them: else each of its lines is read before it is written.
constexpr int64_t kStreamedBytes = 4 * 1024 * 1024;
bool streams(const void* out, int64_t rows, int64_t columns, int32_t out_dtype) {
  return DType(out_dtype) == DType::bf16 && rows * columns * 2 > kStreamedBytes && columns % 32 == 0 &&
         reinterpret_cast<uintptr_t>(out) % 64 == 0;
}

// Stores rows [start, start + count) of a weight. rows: [count, k] of `dtype` with strides in elements.
void linear_fill(const Weight* weight, const void* rows, int64_t start, int64_t count, int64_t row_stride,
                 int64_t k_stride, int32_t dtype, int32_t threads) {
  const Weight& w = *weight;
  // A thread has contiguous rows and takes them in runs of one panel, whose boundaries are the same for every share.
  const int64_t groups = (start + count + kHalfPanel - 1) / kHalfPanel - start / kHalfPanel;
  parallel_for(groups, kHalfPanel * w.k * 2 * bytes_of(DType(w.dtype)), threads, [&](int64_t group) {
    const int64_t first = (start / kHalfPanel + group) * kHalfPanel, end = start + count;
    int64_t row = first > start ? first : start;
    const int64_t stop = first + kHalfPanel < end ? first + kHalfPanel : end;
    while (row < stop) {
      const Place place = place_of(w, row);
      const int run = static_cast<int>(stop - row < place.run ? stop - row : place.run);
      with_type(DType(dtype), [&](auto from) {
        with_type(DType(w.dtype), [&](auto to) {
          using From = decltype(from);
          using To = decltype(to);
          uint8_t* panel = const_cast<uint8_t*>(w.data) + place.panel * panel_bytes(w);
          pack_rows<From, To>((const typename From::type*)rows + (row - start) * row_stride, row_stride, k_stride, w.k, run,
                             (typename To::type*)panel, place.column);
        });
      });
      row += run;
    }
  });
}

// out [count, k] = rows `ids` of a weight. Returns 0, or 1 and writes nothing when one is not in [0, n).
int32_t linear_rows(const Weight* weight, const int64_t* ids, void* out, int64_t count, int32_t threads) {
  const Weight& w = *weight;
  if (!all_inside(ids, count, w.n)) return 1;
  parallel_for(count, w.k * 64, threads, [&](int64_t i) {
    const Place place = place_of(w, ids[i]);
    with_type(DType(w.dtype), [&](auto type) {
      using T = decltype(type);
      using E = typename T::type;
      const E* panel = (const E*)(w.data + place.panel * panel_bytes(w));
      unpack_row<T>(panel, place.column, w.k, (E*)out + i * w.k);
    });
  });
  return 0;
}

// out = epilogue(x W^T), see Output. x: [rows, k] of the weight's type, rows `stride` elements apart. `invariant`: a
// result must not depend on the number of rows.
void linear(const Weight* weight, const void* x, const void* bias, const void* residual, void* out, int64_t rows,
            int64_t stride, int64_t residual_stride, int32_t out_dtype, int32_t gate, int32_t invariant,
            int32_t threads) {
  const int64_t columns = weight->gated ? weight->n / 2 : weight->n;
  const Output output = {out,           bias, residual, residual_stride, columns, DType(weight->dtype), DType(out_dtype),
                         Gate(gate),    streams(out, rows, columns, out_dtype)};
  const Problem problem = {weight, x, rows, stride, output};
#if defined(__AMX_TILE__)
  if (DType(weight->dtype) == DType::bf16 && (rows >= kMinAmxRows || invariant)) return multiply_amx(problem, threads);
#endif
  (void)invariant;  // the other products have one order of sums
  multiply(problem, threads);
}

}  // namespace

VLLM_KERNELS(linear) = {
    VLLM_KERNEL(linear),
    VLLM_KERNEL(linear_fill),
    VLLM_KERNEL(linear_rows),
    VLLM_KERNELS_END,
};
