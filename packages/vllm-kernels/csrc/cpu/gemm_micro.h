// The register tile: up to kTileRows rows of activations by one panel of 64 columns.
#pragma once

#include "gemm_format.h"

namespace {

// Six rows by four vectors are 24 of AVX-512's 32 registers. AVX2 has 16 of half the size: a tile goes through its panel
// in several passes over fewer columns, and the panel is in the second cache from the first on.
constexpr int kTileRows = 6;
#if defined(__AVX512F__)
constexpr int vectors_at_once(int) { return 4; }
#else
constexpr int vectors_at_once(int rows) { return rows == 1 ? 4 : rows <= 3 ? 2 : 1; }
#endif

// A single tile of rows uses each weight once, as it comes from memory: it fetches so far ahead into the first cache. More
// tiles fetch the panel's next part into the second while they multiply this one.
constexpr int64_t kAheadBytes = 4096;
constexpr int kLinesOfOneTile = kStepBytes / 64;

template <int kLines>
__attribute__((always_inline)) inline void fetch(const uint8_t* from) {
#pragma GCC unroll 8
  for (int line = 0; line < kLines; ++line) {
    if (kLines == kLinesOfOneTile)
      _mm_prefetch((const char*)from + line * 64, _MM_HINT_T0);
    else
      _mm_prefetch((const char*)from + line * 64, _MM_HINT_T1);
  }
}

// c [R, 64] (+)= a [R, steps * kUnits] times `steps` steps of a panel. a's rows are `stride` units apart. On the way,
// kAhead lines for each step are fetched from `ahead` on.
template <class F, int R, int kAhead>
__attribute__((noinline)) void micro(const typename F::A* a, int64_t stride, const uint8_t* b, int64_t steps, float* c,
                                     bool add, const uint8_t* ahead) {
  constexpr int V = vectors_at_once(R);
  for (int first = 0; first < kPanel / kLanes; first += V) {
    Vec sum[R][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[r][v] = zero();
    const typename F::A* x = a;
    const uint8_t *w = b, *next = ahead;
    for (int64_t i = 0; i < steps; ++i) {
      fetch<kAhead>(next);
      F::template step<R, V>(sum, x, stride, w, first);
      x += F::kUnits;
      w += F::kBytes;
      next += kAhead * 64;
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) {
        float* to = c + r * kPanel + (first + v) * kLanes;
        store(to, add ? load(to) + sum[r][v] : sum[r][v]);
      }
  }
}

template <class F, int kAhead>
inline void micro_rows(int rows, const typename F::A* a, int64_t stride, const uint8_t* b, int64_t steps, float* c,
                       bool add, const uint8_t* ahead) {
  switch (rows) {
    case 1: return micro<F, 1, kAhead>(a, stride, b, steps, c, add, ahead);
    case 2: return micro<F, 2, kAhead>(a, stride, b, steps, c, add, ahead);
    case 3: return micro<F, 3, kAhead>(a, stride, b, steps, c, add, ahead);
    case 4: return micro<F, 4, kAhead>(a, stride, b, steps, c, add, ahead);
    case 5: return micro<F, 5, kAhead>(a, stride, b, steps, c, add, ahead);
    default: return micro<F, 6, kAhead>(a, stride, b, steps, c, add, ahead);
  }
}

// `rows` <= kTileRows rows; `lines` (0, 1, 2 or 4) is kAhead.
template <class F>
inline void micro(int rows, int lines, const typename F::A* a, int64_t stride, const uint8_t* b, int64_t steps, float* c,
                  bool add, const uint8_t* ahead) {
  switch (lines) {
    case 0: return micro_rows<F, 0>(rows, a, stride, b, steps, c, add, ahead);
    case 1: return micro_rows<F, 1>(rows, a, stride, b, steps, c, add, ahead);
    case 2: return micro_rows<F, 2>(rows, a, stride, b, steps, c, add, ahead);
    default: return micro_rows<F, 4>(rows, a, stride, b, steps, c, add, ahead);
  }
}

}  // namespace
