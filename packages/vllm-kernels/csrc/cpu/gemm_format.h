// How a panel of weights is multiplied: one struct for each storage type. The register tile (gemm_micro.h) is written
// in these alone, so a new kind of weight needs a new Format and nothing else:
//
//   struct Format {
//     using A = ...;                  // what a row of activations is made of when the tile reads it
//     static constexpr int kUnits;    // A's for one step
//     static constexpr int kDepth;    // k of one step
//     static constexpr int kBytes;    // bytes of a panel for one step
//     // Adds one step to R rows of V vectors of 16 columns, the first of them at column 16 * first. The sum of each
//     // element is one chain in the order of k, for every R and V: results do not depend on the number of rows.
//     template <int R, int V> static void step(Vec (&sum)[R][V], const A* a, int64_t stride, const uint8_t* b, int first);
//   };
#pragma once

#include "pack.h"
#include "vec.h"

namespace {

struct F32Format {
  using A = float;
  static constexpr int kUnits = 1, kDepth = 1, kBytes = kStepBytes;
  template <int R, int V>
  __attribute__((always_inline)) static void step(Vec (&sum)[R][V], const A* a, int64_t stride, const uint8_t* b,
                                                  int first) {
    Vec w[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) w[v] = load((const float*)b + (first + v) * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec x = splat(a[r * stride]);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[r][v] = fma(x, w[v], sum[r][v]);
    }
  }
};

struct F16Format {
  using A = float;
  static constexpr int kUnits = 2, kDepth = 2, kBytes = kStepBytes;
  template <int R, int V>
  __attribute__((always_inline)) static void step(Vec (&sum)[R][V], const A* a, int64_t stride, const uint8_t* b,
                                                  int first) {
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k) {
      Vec w[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) w[v] = load_f16((const uint16_t*)b + k * kPanel + (first + v) * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Vec x = splat(a[r * stride + k]);
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sum[r][v] = fma(x, w[v], sum[r][v]);
      }
    }
  }
};

// The even and the odd element of sixteen pairs of bf16.
#if defined(__AVX512F__)
inline Vec even_bf16(const uint8_t* p) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16))};
}
inline Vec odd_bf16(const uint8_t* p) {
  return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi32(-65536)))};
}
#else
inline __m256i pairs(const uint8_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
inline Vec even_bf16(const uint8_t* p) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(pairs(p), 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(pairs(p + 32), 16))};
}
inline Vec odd_bf16(const uint8_t* p) {
  const __m256i high = _mm256_set1_epi32(-65536);
  return {_mm256_castsi256_ps(_mm256_and_si256(pairs(p), high)),
          _mm256_castsi256_ps(_mm256_and_si256(pairs(p + 32), high))};
}
#endif

// bf16 where there is no instruction for it: exact products in fp32.
struct WideBF16Format {
  using A = float;
  static constexpr int kUnits = 2, kDepth = 2, kBytes = kStepBytes;
  template <int R, int V>
  __attribute__((always_inline)) static void step(Vec (&sum)[R][V], const A* a, int64_t stride, const uint8_t* b,
                                                  int first) {
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k) {
      Vec w[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) w[v] = k ? odd_bf16(b + (first + v) * 64) : even_bf16(b + (first + v) * 64);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const Vec x = splat(a[r * stride + k]);
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sum[r][v] = fma(x, w[v], sum[r][v]);
      }
    }
  }
};

#if defined(__AVX512BF16__)
// Two neighbours of a row of activations. The row may begin at any bf16, which need not be a multiple of 4 bytes.
struct BF16Pair {
  uint16_t even, odd;
  __m512i in_all_lanes() const {
    int32_t both;
    __builtin_memcpy(&both, this, sizeof(both));
    return _mm512_set1_epi32(both);
  }
};

// VDPBF16PS: two products a lane.
struct BF16Format {
  using A = BF16Pair;
  static constexpr int kUnits = 1, kDepth = 2, kBytes = kStepBytes;
  template <int R, int V>
  __attribute__((always_inline)) static void step(Vec (&sum)[R][V], const A* a, int64_t stride, const uint8_t* b,
                                                  int first) {
    __m512i w[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) w[v] = _mm512_loadu_si512(b + (first + v) * 64);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const __m512i x = a[r * stride].in_all_lanes();
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[r][v].v = _mm512_dpbf16_ps(sum[r][v].v, (__m512bh)x, (__m512bh)w[v]);
    }
  }
};
#else
using BF16Format = WideBF16Format;
#endif

}  // namespace
