// Products of rows of activations with packed weights: blocks for the caches and shares for the threads.
#pragma once

#include "buffer.h"
#include "gemm_epilogue.h"
#include "gemm_micro.h"
#include "gemm_share.h"
#include "parallel.h"

namespace {

// Rows of activations that stay in the second cache while all panels of a thread pass by.
constexpr int kBlockRows = 32 * kTileRows;
// Steps along K at a time: 128 KiB of a panel. Each part is a chain of sums of its own and is added to those before it,
// whatever the number of rows: short chains keep the rounding of long rows small, and their tiles of rows stay in the
// first cache.
constexpr int64_t kBlockSteps = 512;

// Rows that a thread takes next, 50 to 200 us of work, where a weight is no larger than this.
constexpr int64_t kRowsAtOnce = 16 * kTileRows;
constexpr int64_t kSmallWeight = 768 * 1024;

struct Problem {
  const Weight* weight;
  const void* x;  // [rows, k], rows `stride` elements apart
  int64_t rows, stride;
  Output out;
};

// One thread is enough for work that takes less time than waking another.
inline int useful_threads(const Problem& problem, int threads) {
  const Weight& w = *problem.weight;
  const int64_t bytes = panels_of(w) * panel_bytes(w), products = problem.rows * w.n * w.k;
  return bytes + products / 16 < 4 * kMinBytesPerThread ? 1 : threads;
}

// The rows of activations as the format reads them. fp32, and pairs of bf16, are read where they are.
template <class F, class T>
struct Activations {
  static constexpr bool kInPlace = sizeof(typename F::A) == F::kDepth / F::kUnits * sizeof(typename T::type);

  const typename F::A* data;
  int64_t stride;

  Activations(const Problem& problem, int64_t row, int64_t rows, Buffer& buffer) {
    using E = typename T::type;
    const int64_t k = problem.weight->k;
    const E* x = (const E*)problem.x + row * problem.stride;
    if (kInPlace && k % F::kDepth == 0 && (F::kDepth == 1 || problem.stride % 2 == 0 || rows == 1)) {
      data = (const typename F::A*)x;
      stride = problem.stride / F::kDepth;
      return;
    }
    // Converted, or padded with a zero to whole steps.
    const int64_t size = round_up(k, kPaddedK);
    stride = size / F::kDepth * F::kUnits;
    char* copy = buffer.get(rows * stride * sizeof(typename F::A));
    for (int64_t r = 0; r < rows; ++r) {
      if (kInPlace) {
        E* to = (E*)copy + r * size;
        for (int64_t i = 0; i < size; ++i) to[i] = i < k ? x[r * problem.stride + i] : E(0);
      } else {
        float* to = (float*)copy + r * size;
        for_lanes(k, [&](int64_t i, Mask m, bool whole) {
          const E* from = x + r * problem.stride + i;
          store(to + i, whole ? T::load(from) : T::load(from, m));
        });
        for (int64_t i = round_up(k, kLanes); i < size; ++i) to[i] = 0.f;
      }
    }
    data = (const typename F::A*)copy;
  }
};

// A panel's rows [row, row + rows) in tiles. c: [rows, 64] when K comes in several parts.
template <class F, class T>
void multiply_panel(const Problem& problem, const Activations<F, T>& x, int64_t row, int rows, int64_t panel, float* c) {
  const Weight& w = *problem.weight;
  const int64_t all_steps = (w.k + F::kDepth - 1) / F::kDepth;
  const uint8_t* b = w.data + panel * panel_bytes(w);
  const int tiles = (rows + kTileRows - 1) / kTileRows;
  alignas(64) float tile[kTileRows * kPanel];
  for (int64_t step = 0; step < all_steps; step += kBlockSteps) {
    const int64_t steps = all_steps - step < kBlockSteps ? all_steps - step : kBlockSteps;
    const bool last = step + steps == all_steps;
    const bool parts = steps != all_steps;
    const uint8_t* part = b + step * F::kBytes;
    // A single tile fetches a few KiB ahead, more of them the panel's next part (or the next panel).
    const uint8_t* next = tiles == 1 ? part + kAheadBytes : part + steps * F::kBytes;
    for (int t = 0; t < tiles; ++t) {
      const int first = tile_begin(rows, t, tiles), count = tile_begin(rows, t + 1, tiles) - first;
      const int lines = lines_of(t, tiles);
      float* sums = parts ? c + first * kPanel : tile;
      micro<F>(count, lines, x.data + first * x.stride + step * F::kUnits, x.stride, part, steps, sums, step > 0,
               next);
      next += steps * lines * 64;
      if (last) finish(problem.out, sums, count, row + first, panel);
    }
  }
}

template <class F, class T>
void multiply_share(const Problem& problem, const Share& share) {
  static thread_local Buffer copies, sums;
  for (int64_t row = share.rows.begin; row < share.rows.end; row += kBlockRows) {
    const int64_t left = share.rows.end - row, rows = left < kBlockRows ? left : kBlockRows;
    const Activations<F, T> x(problem, row, rows, copies);
    float* c = (float*)sums.get(rows * kPanel * sizeof(float));
    for (int64_t panel = share.panels.begin; panel < share.panels.end; ++panel)
      multiply_panel<F, T>(problem, x, row, static_cast<int>(rows), panel, c);
  }
}

inline void multiply_share(const Problem& problem, const Share& share) {
  switch (static_cast<DType>(problem.weight->dtype)) {
    case DType::bf16: return multiply_share<BF16Format, BF16>(problem, share);
    case DType::f16: return multiply_share<F16Format, F16>(problem, share);
    default: return multiply_share<F32Format, F32>(problem, share);
  }
}

// Divides a product among threads. Many rows by a weight that the second cache holds go to whichever thread is free,
// `at_once` at a time: one whose core is busy with something else then holds up the others for a few rows and not for
// its half.
template <class Body>
void share_product(const Problem& problem, int threads, int64_t at_once, const Body& body) {
  threads = useful_threads(problem, threads);
  const int64_t panels = panels_of(*problem.weight), bytes = panels * panel_bytes(*problem.weight);
  if (threads > 1 && bytes <= kSmallWeight && problem.rows >= at_once * 4 * threads) {
    int64_t taken = 0;
    return run_team(threads, [&](int, int) {
      for (int64_t row; (row = __atomic_fetch_add(&taken, at_once, __ATOMIC_RELAXED)) < problem.rows;) {
        const int64_t end = row + at_once;
        body(Share{{0, panels}, {row, end < problem.rows ? end : problem.rows}});
      }
      if (problem.out.streamed) _mm_sfence();
    });
  }
  run_team(threads, [&](int thread, int num_threads) {
    body(share_of(panels, problem.rows, thread, num_threads));
    if (problem.out.streamed) _mm_sfence();
  });
}

// The whole product with the vector instructions of this level.
inline void multiply(const Problem& problem, int threads) {
  share_product(problem, threads, kRowsAtOnce, [&](const Share& share) { multiply_share(problem, share); });
}

}  // namespace
