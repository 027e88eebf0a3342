// What this machine can do at best, for benchmarks: reading memory, and multiplying what is in registers.
#include "gemm_format.h"
#include "parallel.h"

namespace {

// Reads `bytes` (a multiple of 256) at `data` once, each thread a part of its own; sums has room for 64 bytes a thread.
void limit_read(const uint8_t* data, int64_t bytes, float* sums, int32_t threads) {
  run_team(threads, [&](int thread, int num_threads) {
    const Range part = part_of(bytes / kStepBytes, thread, num_threads);
    Vec sum[4] = {zero(), zero(), zero(), zero()};
    for (int64_t i = part.begin; i < part.end; ++i) {
      const uint8_t* from = data + i * kStepBytes;
      for (int line = 0; line < 4; ++line) {
        _mm_prefetch((const char*)from + 4096 + line * 64, _MM_HINT_T0);
        sum[line] = max(sum[line], load((const float*)(from + line * 64)));
      }
    }
    store(sums + thread * kLanes, max(max(sum[0], sum[1]), max(sum[2], sum[3])));
  });
}

// `rounds` times, on each thread: one step of a tile of 6 rows by as many vectors as there are registers for.
template <class F>
void multiply_rounds(int64_t rounds, float* sums, int threads) {
#if defined(__AVX512F__)
  constexpr int V = 4;
#else
  constexpr int V = 1;
#endif
  run_team(threads, [&](int thread, int) {
    alignas(64) static const uint8_t zeros[F::kBytes] = {};
    const uint8_t* weights = zeros;
    const typename F::A* x = (const typename F::A*)zeros;
    Vec sum[6][V];
#pragma GCC unroll 8
    for (int r = 0; r < 6; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[r][v] = splat(1.f);
    for (int64_t i = 0; i < rounds; ++i) {
      __asm__ volatile("" : "+r"(weights), "+r"(x)::"memory");  // what they point to is not known: nothing is left out
      for (int v = 0; v < 4; v += V) F::template step<6, V>(sum, x, F::kUnits, weights, v);
    }
    Vec total = zero();
#pragma GCC unroll 8
    for (int r = 0; r < 6; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) total = total + sum[r][v];
    store(sums + thread * kLanes, total);
  });
}

// The operations are 2 * 6 * 64 * (2 for bf16 and fp16, 1 for fp32) for each round and thread.
void limit_multiply(int32_t dtype, int64_t rounds, float* sums, int32_t threads) {
  switch (static_cast<DType>(dtype)) {
    case DType::bf16: return multiply_rounds<BF16Format>(rounds, sums, threads);
    case DType::f16: return multiply_rounds<F16Format>(rounds, sums, threads);
    default: return multiply_rounds<F32Format>(rounds, sums, threads);
  }
}

}  // namespace

VLLM_KERNELS(limits) = {
    VLLM_KERNEL(limit_read),
    VLLM_KERNEL(limit_multiply),
    VLLM_KERNELS_END,
};
