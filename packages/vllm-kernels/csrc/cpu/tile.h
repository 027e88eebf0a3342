// AMX tiles: eight registers of 16 rows of 64 bytes. With -DVLLM_EMULATE_AMX they are arrays, and the instructions plain
// C++ that follows their definition, so that what is written for tiles is tested on machines that have none.
//
// Every tile here has all 16 rows of 64 bytes; what is smaller is padded with zeros in memory. Between tiles_begin and
// tiles_end a thread may use them. Tile numbers are template arguments, as the instructions have them.
#pragma once

#include <cstdint>
#include <cstring>
#include <immintrin.h>

namespace {

constexpr int kTileSide = 16;    // rows, and columns of a tile of sums
constexpr int kTileBytes = 64;   // of a row
constexpr int kTileSize = 1024;  // bytes

#if defined(VLLM_EMULATE_AMX)

struct Tile {
  uint8_t rows[kTileSide][kTileBytes];
};
static thread_local Tile tiles_of_thread[8];

inline void tiles_begin() {}
inline void tiles_end() {}
template <int T>
void tile_zero() { std::memset(&tiles_of_thread[T], 0, sizeof(Tile)); }
template <int T>
void tile_load(const void* from, int64_t stride) {
  for (int r = 0; r < kTileSide; ++r) std::memcpy(tiles_of_thread[T].rows[r], (const uint8_t*)from + r * stride, kTileBytes);
}
template <int T>
void tile_store(void* to, int64_t stride) {
  for (int r = 0; r < kTileSide; ++r) std::memcpy((uint8_t*)to + r * stride, tiles_of_thread[T].rows[r], kTileBytes);
}

inline float bf16_in_tile(const uint8_t* p) {
  uint16_t half;
  std::memcpy(&half, p, 2);
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// C += A B with A [16, 32] bf16 and B [16, 16] pairs of bf16: even and odd products are summed apart.
template <int C, int A, int B>
void tile_dot_bf16() {
  for (int m = 0; m < 16; ++m)
    for (int n = 0; n < 16; ++n) {
      float even = 0, odd = 0, sum;
      for (int k = 0; k < 16; ++k) {
        const uint8_t *a = &tiles_of_thread[A].rows[m][4 * k], *b = &tiles_of_thread[B].rows[k][4 * n];
        even += bf16_in_tile(a) * bf16_in_tile(b);
        odd += bf16_in_tile(a + 2) * bf16_in_tile(b + 2);
      }
      std::memcpy(&sum, &tiles_of_thread[C].rows[m][4 * n], 4);
      sum += even + odd;
      std::memcpy(&tiles_of_thread[C].rows[m][4 * n], &sum, 4);
    }
}

template <class X, class Y>
inline void emulated_dot_bytes(Tile& c, const Tile& a, const Tile& b) {
  for (int m = 0; m < 16; ++m)
    for (int n = 0; n < 16; ++n) {
      int32_t sum;
      std::memcpy(&sum, &c.rows[m][4 * n], 4);
      for (int k = 0; k < 16; ++k)
        for (int i = 0; i < 4; ++i) sum += static_cast<X>(a.rows[m][4 * k + i]) * static_cast<Y>(b.rows[k][4 * n + i]);
      std::memcpy(&c.rows[m][4 * n], &sum, 4);
    }
}

// C (int32) += A [16, 64] B [16, 16] groups of four; both signed, or A unsigned.
template <int C, int A, int B>
void tile_dot_i8() {
  emulated_dot_bytes<int8_t, int8_t>(tiles_of_thread[C], tiles_of_thread[A], tiles_of_thread[B]);
}
template <int C, int A, int B>
void tile_dot_u8_i8() {
  emulated_dot_bytes<uint8_t, int8_t>(tiles_of_thread[C], tiles_of_thread[A], tiles_of_thread[B]);
}

#else

inline void tiles_begin() {
  struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  } config = {};
  config.palette = 1;
  for (int t = 0; t < 8; ++t) config.row_bytes[t] = kTileBytes, config.rows[t] = kTileSide;
  // The compiler's own model of the instruction does not read all of the struct.
  __asm__ volatile("ldtilecfg %0" ::"m"(config));
}
inline void tiles_end() { __asm__ volatile("tilerelease"); }
// In assembly: g++'s intrinsics are macros that paste the number of a tile, which no template argument survives.
template <int T>
inline void tile_zero() { __asm__ volatile("tilezero %%tmm%c0" ::"i"(T)); }
template <int T>
inline void tile_load(const void* from, int64_t stride) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(T) : "memory");
}
template <int T>
inline void tile_store(void* to, int64_t stride) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(T) : "memory");
}
template <int C, int A, int B>
inline void tile_dot_bf16() { __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B)); }
template <int C, int A, int B>
inline void tile_dot_i8() { __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B)); }
template <int C, int A, int B>
inline void tile_dot_u8_i8() { __asm__ volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B)); }

#endif

}  // namespace
