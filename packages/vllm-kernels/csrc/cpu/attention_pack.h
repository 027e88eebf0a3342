// Keys and values of a block of consecutive positions, gathered from the cache into the layouts that product() reads:
// keys [units of head_dim][kKeys], values [units of keys][padded head_dim]; numbers as Units says. Both have zeros where
// head_dim is padded, and whole groups of 16 keys: absent keys are rows of zeros.
#pragma once

#include "attention_product.h"
#include "attention_words.h"

namespace {

constexpr int kKeys = 64;  // keys of a block; blocks start at multiples of it, so that sums have one order
constexpr int kGroups = kKeys / kLanes;

// head_dim padded to whole Vecs of units.
template <class Units>
constexpr int padded_dim(int head_dim) {
  constexpr int step = kLanes * Units::kPerUnit;
  return (head_dim + step - 1) / step * step;
}

// x[i][j] -> x[j][i]
inline void transpose(Vec (&x)[16]) {
#if defined(__AVX512F__)
  __m512 a[16], b[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps(x[i].v, x[i + 1].v);
    a[i + 1] = _mm512_unpackhi_ps(x[i].v, x[i + 1].v);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      const __m512d lo = _mm512_castps_pd(a[i + j]), hi = _mm512_castps_pd(a[i + j + 2]);
      b[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(lo, hi));
      b[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(lo, hi));
    }
  for (int i = 0; i < 4; ++i) {  // b[4 k + i]: columns i, i + 4, i + 8, i + 12 of rows 4 k to 4 k + 3
    const __m512 even01 = _mm512_shuffle_f32x4(b[i], b[4 + i], 0x88), odd01 = _mm512_shuffle_f32x4(b[i], b[4 + i], 0xdd);
    const __m512 even23 = _mm512_shuffle_f32x4(b[8 + i], b[12 + i], 0x88);
    const __m512 odd23 = _mm512_shuffle_f32x4(b[8 + i], b[12 + i], 0xdd);
    x[i].v = _mm512_shuffle_f32x4(even01, even23, 0x88);
    x[i + 8].v = _mm512_shuffle_f32x4(even01, even23, 0xdd);
    x[i + 4].v = _mm512_shuffle_f32x4(odd01, odd23, 0x88);
    x[i + 12].v = _mm512_shuffle_f32x4(odd01, odd23, 0xdd);
  }
#else
  __m256 y[2][2][8];  // 8 by 8 parts: [rows][columns]
  for (int i = 0; i < 16; ++i) y[i / 8][0][i % 8] = x[i].lo, y[i / 8][1][i % 8] = x[i].hi;
  for (auto& half : y)
    for (auto& part : half) {
      __m256 a[8], b[8];
      for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_ps(part[i], part[i + 1]);
        a[i + 1] = _mm256_unpackhi_ps(part[i], part[i + 1]);
      }
      for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; ++j) {
          b[i + 2 * j] = _mm256_shuffle_ps(a[i + j], a[i + j + 2], 0x44);
          b[i + 2 * j + 1] = _mm256_shuffle_ps(a[i + j], a[i + j + 2], 0xee);
        }
      for (int i = 0; i < 4; ++i) {
        part[i] = _mm256_permute2f128_ps(b[i], b[4 + i], 0x20);
        part[i + 4] = _mm256_permute2f128_ps(b[i], b[4 + i], 0x31);
      }
    }
  for (int i = 0; i < 16; ++i) x[i] = {y[0][i / 8][i % 8], y[1][i / 8][i % 8]};
#endif
}

// The units of entries [from, from + 16 units) of a row, zeros from head_dim on.
template <class Units, class Format>
inline Vec load_units(const typename Format::type* row, int from, int head_dim) {
  constexpr int step = kLanes * Units::kPerUnit;
  const int left = head_dim - from;
#if defined(__AVX512BF16__)
  if constexpr (Units::kPerUnit == 2)
    return {_mm512_castsi512_ps(words<Format>(row + from, left < step ? left : step))};
  else
#endif
    return left < step ? Format::load(row + from, first(left)) : Format::load(row + from);
}

// A row of the block to come, asked for while this one is packed: blocks of the cache are scattered, so that the
// processor's own prefetching stops at their ends.
inline void ask_for(const void* row, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch((const char*)row + i, 0, 2);
}

// Groups [begin, end) of 16 rows -> packed [units of head_dim][kKeys]. next: the rows of the block to come, or null.
template <class Units, class Format>
void pack_keys(const void* const* rows, const void* const* next, int begin, int end, int head_dim, float* packed) {
  using E = typename Format::type;
  for (int g = begin; g < end; ++g) {
    if (next)
      for (int i = 0; i < kLanes; ++i) ask_for(next[g * kLanes + i], head_dim * sizeof(E));
    for (int from = 0; from < head_dim; from += kLanes * Units::kPerUnit) {
      Vec x[kLanes];
      for (int i = 0; i < kLanes; ++i) x[i] = load_units<Units, Format>((const E*)rows[g * kLanes + i], from, head_dim);
      transpose(x);
      float* to = packed + from / Units::kPerUnit * kKeys + g * kLanes;
      for (int i = 0; i < kLanes; ++i) store(to + i * kKeys, x[i]);
    }
  }
}

// Groups [begin, end) of 16 rows -> packed [units of keys][padded head_dim]. A pair of bf16 is of two neighbouring keys;
// each 32 columns are in the order that interleaving leaves them in, which ordered_columns() undoes.
template <class Units, class Format>
void pack_values(const void* const* rows, const void* const* next, int begin, int end, int head_dim, float* packed) {
  using E = typename Format::type;
  const int width = padded_dim<Units>(head_dim);
  for (int i = begin * kLanes; i < end * kLanes; i += Units::kPerUnit) {
    float* to = packed + static_cast<int64_t>(i / Units::kPerUnit) * width;
    if (next)
      for (int k = 0; k < Units::kPerUnit; ++k) ask_for(next[i + k], head_dim * sizeof(E));
    for (int from = 0; from < head_dim; from += kLanes * Units::kPerUnit) {
      const Vec x = load_units<Units, Format>((const E*)rows[i], from, head_dim);
#if defined(__AVX512BF16__)
      if constexpr (Units::kPerUnit == 2) {
        const Vec y = load_units<Units, Format>((const E*)rows[i + 1], from, head_dim);
        const __m512i a = _mm512_castps_si512(x.v), b = _mm512_castps_si512(y.v);
        _mm512_storeu_si512(to + from, _mm512_unpacklo_epi16(a, b));
        _mm512_storeu_si512(to + from + kLanes, _mm512_unpackhi_epi16(a, b));
        continue;
      }
#endif
      store(to + from, x);
    }
  }
}

// Columns [from, from + 16 units) of a row of pack_values' order -> in the order of head_dim, in Units::kPerUnit Vecs.
template <class Units>
inline void ordered_columns(const float* row, int from, Vec* out) {
#if defined(__AVX512BF16__)
  if constexpr (Units::kPerUnit == 2) {
    const __m512 lo = load(row + from).v, hi = load(row + from + kLanes).v;
    const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
    out[0].v = _mm512_permutex2var_ps(lo, first, hi);
    out[1].v = _mm512_permutex2var_ps(lo, second, hi);
    return;
  }
#endif
  out[0] = load(row + from);
}

// Rows of queries of type T -> [rows][units of head_dim], zeros from head_dim on.
template <class Units, class T>
inline void pack_query(const typename T::type* row, int head_dim, float* packed) {
  const int width = padded_dim<Units>(head_dim);
  for (int i = 0; i < width; i += kLanes) {
    const int left = head_dim - i;
    const Vec x = left >= kLanes ? T::load(row + i) : left > 0 ? T::load(row + i, first(left)) : zero();
    Units::put(packed, i, x);
  }
}

}  // namespace
