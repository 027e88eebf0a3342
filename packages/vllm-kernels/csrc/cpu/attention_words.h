// Entries of a KV cache as bf16, for the levels that multiply these. No entry of 8 bits is rounded: all numbers of
// e4m3, e5m2 and int8 have at most 8 significant bits.
#pragma once

#include "kv_format.h"

namespace {

#if defined(__AVX512BF16__)

// The bf16 of each code without its sign, as the upper and the lower byte.
struct ByteTable {
  alignas(64) uint8_t upper[128], lower[128];
};

constexpr uint16_t bf16_of_code(int code, int mantissa_bits, int bias, int first_special) {
  // `first_special`: codes from here on are not finite; of e5m2 the first of them is infinity.
  if (code >= first_special) return code == first_special && mantissa_bits == 2 ? 0x7f80 : 0x7fc0;
  int exponent = code >> mantissa_bits, mantissa = code & ((1 << mantissa_bits) - 1);
  if (exponent == 0) {
    if (mantissa == 0) return 0;
    exponent = 1;
    while (!(mantissa >> mantissa_bits)) mantissa <<= 1, --exponent;
    mantissa &= (1 << mantissa_bits) - 1;
  }
  return static_cast<uint16_t>((exponent - bias + 127) << 7 | mantissa << (7 - mantissa_bits));
}

constexpr uint16_t bf16_of_integer(int x) {
  if (x == 0) return 0;
  int exponent = 7;
  while (!(x >> 7)) x <<= 1, --exponent;
  return static_cast<uint16_t>((exponent + 127) << 7 | (x & 0x7f));
}

template <class Code>
constexpr ByteTable byte_table(const Code& code) {
  ByteTable table = {};
  for (int i = 0; i < 128; ++i) {
    table.upper[i] = static_cast<uint8_t>(code(i) >> 8);
    table.lower[i] = static_cast<uint8_t>(code(i) & 0xff);
  }
  return table;
}

constexpr ByteTable kE4M3Table = byte_table([](int code) { return bf16_of_code(code, 3, 7, 0x7f); });
constexpr ByteTable kE5M2Table = byte_table([](int code) { return bf16_of_code(code, 2, 15, 0x7c); });
constexpr ByteTable kI8Table = byte_table([](int code) { return bf16_of_integer(code); });

// 64 magnitudes (the top bit is ignored) and the bytes with their signs -> upper and lower bytes of 64 bf16.
inline void bf16_bytes(__m512i magnitudes, __m512i signs, const ByteTable& table, __m512i& upper, __m512i& lower) {
  const __m512i* u = (const __m512i*)table.upper;
  const __m512i* l = (const __m512i*)table.lower;
  upper = _mm512_permutex2var_epi8(_mm512_load_si512(u), magnitudes, _mm512_load_si512(u + 1));
  lower = _mm512_permutex2var_epi8(_mm512_load_si512(l), magnitudes, _mm512_load_si512(l + 1));
  upper = _mm512_ternarylogic_epi64(upper, signs, _mm512_set1_epi8(-128), 0xf8);  // upper | (signs & 0x80)
}

struct ByteOrder {
  alignas(64) uint8_t from[64];
};

constexpr ByteOrder byte_order(int offset) {
  ByteOrder order = {};
  for (int i = 0; i < 16; ++i)
    for (int k = 0; k < 4; ++k) order.from[4 * i + k] = static_cast<uint8_t>(4 * i + offset + k / 2 + (k % 2) * 64);
  return order;
}

// The tables of a storage type, and the magnitudes of its codes.
inline const ByteTable& table_of(E4M3) { return kE4M3Table; }
inline const ByteTable& table_of(E5M2) { return kE5M2Table; }
inline const ByteTable& table_of(I8) { return kI8Table; }
inline __m512i magnitudes_of(E4M3, __m512i codes) { return codes; }
inline __m512i magnitudes_of(E5M2, __m512i codes) { return codes; }
inline __m512i magnitudes_of(I8, __m512i codes) { return _mm512_abs_epi8(codes); }  // -128 is never stored

// The first n <= 32 of the entries at p as bf16, zeros after them.
template <class Format>
inline __m512i words(const typename Format::type* p, int n) {
  const __mmask32 present = static_cast<__mmask32>((1ull << n) - 1);
  if constexpr (sizeof(typename Format::type) == 2) {
    return n == 32 ? _mm512_loadu_si512(p) : _mm512_maskz_loadu_epi16(present, p);
  } else {
    const __m256i codes = n == 32 ? _mm256_loadu_si256((const __m256i*)p) : _mm256_maskz_loadu_epi8(present, p);
    // Each 8 bytes to the lower half of 128 bits, where the interleaving below takes them from.
    const __m512i halves = _mm512_setr_epi64(0, 0, 1, 1, 2, 2, 3, 3);
    const __m512i spread = _mm512_permutexvar_epi64(halves, _mm512_castsi256_si512(codes));
    __m512i upper, lower;
    bf16_bytes(magnitudes_of(Format(), spread), spread, table_of(Format()), upper, lower);
    return _mm512_unpacklo_epi8(lower, upper);
  }
}

// 64 entries of 8 bits at p as bf16: the first and the last 32.
template <class Format>
inline void words_of_64(const typename Format::type* p, __m512i& first, __m512i& last) {
  const __m512i halves = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
  const __m512i codes = _mm512_permutexvar_epi64(halves, _mm512_loadu_si512(p));
  __m512i upper, lower;
  bf16_bytes(magnitudes_of(Format(), codes), codes, table_of(Format()), upper, lower);
  first = _mm512_unpacklo_epi8(lower, upper);
  last = _mm512_unpackhi_epi8(lower, upper);
}

// Four codes in each dword -> the bf16 of the first two and of the last two.
template <class Format>
inline void pairs_of_codes(__m512i codes, __m512& first, __m512& second) {
  __m512i upper, lower;
  bf16_bytes(magnitudes_of(Format(), codes), codes, table_of(Format()), upper, lower);
  // Dword i of `first`: bytes 4 i of lower and upper, then 4 i + 1 of both; 64 is the second operand's byte 0.
  alignas(64) static constexpr ByteOrder kFirst = byte_order(0), kSecond = byte_order(2);
  first = _mm512_castsi512_ps(_mm512_permutex2var_epi8(lower, _mm512_load_si512(kFirst.from), upper));
  second = _mm512_castsi512_ps(_mm512_permutex2var_epi8(lower, _mm512_load_si512(kSecond.from), upper));
}

#endif

}  // namespace
