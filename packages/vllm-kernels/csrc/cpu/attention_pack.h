// Keys and values of a block of consecutive positions, gathered from the cache into the layouts that product() reads:
// keys [units of head_dim][kKeys], values [units of keys][padded head_dim]; numbers as Units says. Both have zeros
// where head_dim is padded, and whole groups of 16 keys: absent keys are rows of zeros.
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
    const __m512 even01 = _mm512_shuffle_f32x4(b[i], b[4 + i], 0x88);
    const __m512 odd01 = _mm512_shuffle_f32x4(b[i], b[4 + i], 0xdd);
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

#if defined(__AVX512F__)
// Pieces of 16 bytes at `offset` of 16 rows -> x[j]: dword j of each. The rows are put together by loads, which leaves
// half of a transposition's shuffles.
inline void transpose_piece(const void* const* rows, int64_t offset, Vec* x) {
  __m512 a[4];
  for (int i = 0; i < 4; ++i) {
    const auto piece = [&](int k) { return _mm_loadu_ps((const float*)((const char*)rows[i + 4 * k] + offset)); };
    a[i] = _mm512_castps128_ps512(piece(0));
    for (int k = 1; k < 4; ++k) a[i] = _mm512_mask_broadcast_f32x4(a[i], static_cast<Mask>(0xf << 4 * k), piece(k));
  }
  const __m512d lo01 = _mm512_castps_pd(_mm512_unpacklo_ps(a[0], a[1]));
  const __m512d hi01 = _mm512_castps_pd(_mm512_unpackhi_ps(a[0], a[1]));
  const __m512d lo23 = _mm512_castps_pd(_mm512_unpacklo_ps(a[2], a[3]));
  const __m512d hi23 = _mm512_castps_pd(_mm512_unpackhi_ps(a[2], a[3]));
  x[0].v = _mm512_castpd_ps(_mm512_unpacklo_pd(lo01, lo23));
  x[1].v = _mm512_castpd_ps(_mm512_unpackhi_pd(lo01, lo23));
  x[2].v = _mm512_castpd_ps(_mm512_unpacklo_pd(hi01, hi23));
  x[3].v = _mm512_castpd_ps(_mm512_unpackhi_pd(hi01, hi23));
}
#endif

// x[u]: unit u of [from, from + 16 units) of 16 rows, zeros from head_dim on.
template <class Units, class Format>
__attribute__((always_inline)) inline void transposed_units(const void* const* rows, int from, int head_dim,
                                                            Vec (&x)[16]) {
  using E = typename Format::type;
#if defined(__AVX512F__)
  if (from + kLanes * Units::kPerUnit <= head_dim) {
    if constexpr (Units::kPerUnit * sizeof(E) == 4 && (Units::kPerUnit == 2 || sizeof(E) == 4)) {
      for (int k = 0; k < 4; ++k) transpose_piece(rows, from * sizeof(E) + 16 * k, x + 4 * k);
      return;
    }
#if defined(__AVX512BF16__)
    if constexpr (Units::kPerUnit == 2 && sizeof(E) == 1) {
      Vec codes[8];  // four of a row at once
      for (int k = 0; k < 2; ++k) transpose_piece(rows, from + 16 * k, codes + 4 * k);
      for (int k = 0; k < 8; ++k) pairs_of_codes<Format>(_mm512_castps_si512(codes[k].v), x[2 * k].v, x[2 * k + 1].v);
      return;
    }
#endif
  }
#endif
  for (int i = 0; i < kLanes; ++i) x[i] = load_units<Units, Format>((const E*)rows[i], from, head_dim);
  transpose(x);
}

// Asks for the cache lines of bytes [offset, offset + Bytes) of rows that are read soon: blocks of the cache are
// scattered, so that the processor's own prefetching stops at their ends. To be called for a few lines at a time,
// between computations: the processor can wait for a few dozen only, and then for nothing else. Measured when decoding
// from memory: 11.5 GB/s a core with all lines of 16 rows at once, 14.5 so.
template <int Bytes>
inline void ask_for(const void* const* rows, int count, int64_t offset) {
  if (Bytes < 64 && offset % 64) return;
  for (int k = 0; k < count; ++k)
    for (int i = 0; i < Bytes; i += 64) __builtin_prefetch((const char*)rows[k] + offset + i, 0, 2);
}

// Packs groups [begin, end) of 16 rows; next: rows to ask for meanwhile, or null.
using PackRows = void (*)(const void* const* rows, const void* const* next, int begin, int end, int head_dim,
                          float* packed);

// Groups [begin, end) of 16 rows -> packed [units of head_dim][kKeys]. next: rows to ask for meanwhile, or null.
template <class Units, class Format>
void pack_keys(const void* const* rows, const void* const* next, int begin, int end, int head_dim, float* packed) {
  constexpr int step = kLanes * Units::kPerUnit, kBytes = sizeof(typename Format::type);
  for (int g = begin; g < end; ++g) {
    for (int from = 0; from < head_dim; from += step) {
      if (next) ask_for<step * kBytes>(next + g * kLanes, kLanes, from * kBytes);
      Vec x[kLanes];
      transposed_units<Units, Format>(rows + g * kLanes, from, head_dim, x);
      float* to = packed + from / Units::kPerUnit * kKeys + g * kLanes;
      for (int i = 0; i < kLanes; ++i) store(to + i * kKeys, x[i]);
    }
  }
}

// Columns [from, from + 16 units) of the unit whose keys begin at rows[0], in Units::kPerUnit Vecs. A pair of bf16 is
// of two neighbouring keys; its 32 columns are in the order that interleaving leaves, which store_columns() undoes.
template <class Units, class Format>
inline void value_columns(const void* const* rows, int from, int head_dim, Vec* out) {
  using E = typename Format::type;
  const Vec x = load_units<Units, Format>((const E*)rows[0], from, head_dim);
#if defined(__AVX512BF16__)
  if constexpr (Units::kPerUnit == 2) {
    const Vec y = load_units<Units, Format>((const E*)rows[1], from, head_dim);
    const __m512i a = _mm512_castps_si512(x.v), b = _mm512_castps_si512(y.v);
    out[0].v = _mm512_castsi512_ps(_mm512_unpacklo_epi16(a, b));
    out[1].v = _mm512_castsi512_ps(_mm512_unpackhi_epi16(a, b));
    return;
  }
#endif
  out[0] = x;
}

#if defined(__AVX512BF16__)
// Four Vecs of value_columns at once: columns [from, from + 64) of entries of 8 bits.
template <class Format>
inline void value_columns_of_64(const void* const* rows, int from, Vec* out) {
  using E = typename Format::type;
  __m512i a[2], b[2];
  words_of_64<Format>((const E*)rows[0] + from, a[0], a[1]);
  words_of_64<Format>((const E*)rows[1] + from, b[0], b[1]);
  for (int k = 0; k < 2; ++k) {
    out[2 * k].v = _mm512_castsi512_ps(_mm512_unpacklo_epi16(a[k], b[k]));
    out[2 * k + 1].v = _mm512_castsi512_ps(_mm512_unpackhi_epi16(a[k], b[k]));
  }
}
#endif

// Groups [begin, end) of 16 rows -> packed [units of keys][padded head_dim].
template <class Units, class Format>
void pack_values(const void* const* rows, const void* const* next, int begin, int end, int head_dim, float* packed) {
  constexpr int step = kLanes * Units::kPerUnit, kBytes = sizeof(typename Format::type);
  const int width = padded_dim<Units>(head_dim);
  for (int i = begin * kLanes; i < end * kLanes; i += Units::kPerUnit) {
    float* to = packed + static_cast<int64_t>(i / Units::kPerUnit) * width;
    for (int from = 0; from < head_dim; from += step) {
      if (next) ask_for<step * kBytes>(next + i, Units::kPerUnit, from * kBytes);
      Vec x[Units::kPerUnit];
      value_columns<Units, Format>(rows + i, from, head_dim, x);
      for (int k = 0; k < Units::kPerUnit; ++k) store(to + from + k * kLanes, x[k]);
    }
  }
}

// A row of queries of type T -> [units of head_dim], zeros from head_dim on.
template <class Units, class T>
inline void pack_query(const typename T::type* row, int head_dim, float* packed) {
  for (int i = 0; i < head_dim; i += kLanes * Units::kPerUnit)
    store(packed + i / Units::kPerUnit, load_units<Units, T>(row, i, head_dim));
}

}  // namespace
