// Rows of a checkpoint's tensor into panels (pack.h). Loading a model is this and reading its files, so rows whose elements
// are neighbours are turned into columns in registers, eight by eight words.
#pragma once

#include "pack.h"

namespace {

constexpr int kTurned = 8;          // rows that are turned at once
constexpr int64_t kPackBlock = 32;  // elements of a row that are read at once: a cache line or two

// Eight rows of eight words become eight columns: x[i][j] and x[j][i] change places.
inline void turn(__m256 (&x)[kTurned]) {
  __m256 twos[8], fours[8];
  for (int i = 0; i < 8; i += 2) {
    twos[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
    twos[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    fours[i] = _mm256_shuffle_ps(twos[i], twos[i + 2], 0x44);
    fours[i + 1] = _mm256_shuffle_ps(twos[i], twos[i + 2], 0xee);
    fours[i + 2] = _mm256_shuffle_ps(twos[i + 1], twos[i + 3], 0x44);
    fours[i + 3] = _mm256_shuffle_ps(twos[i + 1], twos[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    x[i] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20);
    x[i + 4] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
  }
}

// Stores a word of each of eight columns: one number at `k`, or those at `k` and `k` + 1.
inline void store_words(float* panel, int64_t k, int column, __m256 words, F32) {
  _mm256_storeu_ps(panel + k * kPanel + column, words);
}
inline void store_words(uint16_t* panel, int64_t k, int column, __m256 words, BF16) {
  _mm256_storeu_ps((float*)(panel + k * kPanel) + column, words);
}
inline void store_words(uint16_t* panel, int64_t k, int column, __m256 words, F16) {
  const __m256i pairs = _mm256_castps_si256(words);
  const __m256i even = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff)), odd = _mm256_srli_epi32(pairs, 16);
  const __m256i parted = _mm256_permute4x64_epi64(_mm256_packus_epi32(even, odd), 0xd8);
  _mm_storeu_si128((__m128i*)(panel + k * kPanel + column), _mm256_castsi256_si128(parted));
  _mm_storeu_si128((__m128i*)(panel + (k + 1) * kPanel + column), _mm256_extracti128_si256(parted, 1));
}

// Elements [k, k + kPackBlock) of eight rows, `row_stride` elements apart.
template <class To>
inline void pack_block(const typename To::type* rows, int64_t row_stride, int64_t k, typename To::type* panel,
                       int column) {
  constexpr int kPerWord = 4 / sizeof(typename To::type), kPiece = 8 * kPerWord;
  for (int64_t i = 0; i < kPackBlock; i += kPiece) {
    __m256 x[kTurned];
    for (int r = 0; r < kTurned; ++r) x[r] = _mm256_loadu_ps((const float*)(rows + r * row_stride + i));
    turn(x);
    for (int j = 0; j < 8; ++j) store_words(panel, k + i + j * kPerWord, column, x[j], To());
  }
}

// Stores `count` rows of `size` elements, which are neighbours in one panel from `column` on.
template <class From, class To>
void pack_rows(const typename From::type* source, int64_t row_stride, int64_t k_stride, int64_t size, int count,
               typename To::type* panel, int column) {
  using E = typename To::type;
  for (int64_t k0 = 0; k0 < size; k0 += kPackBlock) {
    const int64_t k1 = k0 + kPackBlock < size ? k0 + kPackBlock : size;
    int r = 0;
    if (k_stride == 1 && k1 - k0 == kPackBlock) {
      for (; r + kTurned <= count; r += kTurned) {
        const typename From::type* rows = source + r * row_stride + k0;
        if constexpr (__is_same(From, To)) {
          pack_block<To>(rows, row_stride, k0, panel, column + r);
        } else {
          alignas(32) E converted[kTurned][kPackBlock];
          for (int i = 0; i < kTurned; ++i)
            for (int k = 0; k < kPackBlock; ++k) converted[i][k] = convert<From, To>(rows[i * row_stride + k]);
          pack_block<To>(converted[0], kPackBlock, k0, panel, column + r);
        }
      }
    }
    for (; r < count; ++r)
      for (int64_t k = k0; k < k1; ++k)
        panel[offset_in_panel<To>(k, column + r)] = convert<From, To>(source[r * row_stride + k * k_stride]);
  }
}

constexpr int64_t kStepsAhead = 128;  // the second cache waits for more lines at once than the first

// Copies a row out of its panel. Each step of it is a line of memory of its own.
template <class T>
void unpack_row(const typename T::type* panel, int column, int64_t size, typename T::type* to) {
  for (int64_t k = 0; k < size; ++k) to[k] = panel[offset_in_panel<T>(k, column)];
}
template <>
void unpack_row<BF16>(const uint16_t* panel, int column, int64_t size, uint16_t* to) {
  const uint16_t* from = panel + 2 * column;
  for (int64_t k = 0; k + 1 < size; k += 2, from += 2 * kPanel) {
    _mm_prefetch((const char*)(from + kStepsAhead * 2 * kPanel), _MM_HINT_T1);
    __builtin_memcpy(to + k, from, 4);
  }
  if (size & 1) to[size - 1] = *from;
}

}  // namespace
