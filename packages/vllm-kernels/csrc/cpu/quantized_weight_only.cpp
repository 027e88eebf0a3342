// Products of activations as they are with weights of 8 or 4 bits.
//
// A piece of a panel becomes floats in the first cache, once for many rows, and meets the register tile of the dense
// kernels. The floats are whole numbers, q - zero, which even bf16 holds exactly; scales are applied to the sums of a
// piece, in fp32. So the weight is not rounded again, and pieces are added in their order for every number of rows.
#include "gemm_micro.h"
#include "quantized_ints.h"
#include "quantized_output.h"
#include "unroll.h"

namespace {

constexpr int64_t kRowBlock = 192;  // rows that meet a piece while it is in the cache

struct Product {
  Layout layout;
  const uint8_t* packed;
  const float* factors;
  const void* x;  // [rows][round_up(in_features, 8)], zeros at the end: bf16 or fp32
  Output output;
};

template <int from>
inline Vec byte_of(Ints bytes, Vec zero_point) {
  return to_floats((from == 24 ? down<24>(bytes) : down<from>(bytes) & splat_ints(255))) - zero_point;
}

// q - zero of four columns (k) and sixteen lanes, k by k.
struct ToF32 {
  using Format = F32Format;
  static constexpr int64_t kPiece = 64;  // columns: 16 KiB of floats
  template <bool kFour>
  static void put(Ints bytes, Ints zero_point, float* to) {
    const Vec minus = to_floats(zero_point);
    store(to, byte_of<0>(bytes, minus));
    store(to + kPanel, byte_of<8>(bytes, minus));
    store(to + 2 * kPanel, byte_of<16>(bytes, minus));
    store(to + 3 * kPanel, byte_of<24>(bytes, minus));
  }
};

#if defined(__AVX512BF16__)
struct ToBF16 {
  using Format = BF16Format;
  static constexpr int64_t kPiece = 128;
  template <bool kFour>
  static void put(Ints bytes, Ints zero_point, float* to) {
    if constexpr (kFour) {
      // From a table: entry i is i - 16. Only the lower five bits of a word count as an index.
      alignas(64) static const uint16_t kTable[32] = {
          0xc180, 0xc170, 0xc160, 0xc150, 0xc140, 0xc130, 0xc120, 0xc110, 0xc100, 0xc0e0, 0xc0c0,
          0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80, 0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0,
          0x40c0, 0x40e0, 0x4100, 0x4110, 0x4120, 0x4130, 0x4140, 0x4150, 0x4160, 0x4170};
      const __m512i table = _mm512_load_si512(kTable);
      const __m512i spread = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 0, 1, 1, 4, 4, 5, 5, 8, 8, 9, 9, 12, 12, 13, 13));
      const __m512i two = _mm512_set1_epi8(2);
      const __m512i z = _mm512_mullo_epi32(zero_point.v, _mm512_set1_epi32(0x01010101));
      const __m512i index = _mm512_add_epi8(bytes.v, _mm512_sub_epi8(_mm512_set1_epi8(16), z));
      const __m512i first_pairs = _mm512_shuffle_epi8(index, spread);
      const __m512i second_pairs = _mm512_shuffle_epi8(index, _mm512_add_epi8(spread, two));
      _mm512_storeu_si512(to, _mm512_permutexvar_epi16(first_pairs, table));
      _mm512_storeu_si512(to + kPanel, _mm512_permutexvar_epi16(second_pairs, table));
    } else {
      // A byte in the last 8 bits of 2^23, or one place higher in 2^15, is that number plus the byte.
      const __m512i two_23 = _mm512_set1_epi32(0x4b000000), two_15 = _mm512_set1_epi32(0x47000000);
      const __m512i low = _mm512_set1_epi32(0xff), high = _mm512_set1_epi32(0xff00);
      const Vec z = to_floats(zero_point), minus_even = z + splat(8388608.f), minus_odd = z + splat(32768.f);
      // The upper halves of two vectors side by side; the lower ones are 0, as whole numbers to 255 are bf16.
      alignas(64) static const uint16_t kUpperHalves[32] = {1,  33, 3,  35, 5,  37, 7,  39, 9,  41, 11,
                                                            43, 13, 45, 15, 47, 17, 49, 19, 51, 21, 53,
                                                            23, 55, 25, 57, 27, 59, 29, 61, 31, 63};
      const __m512i halves = _mm512_load_si512(kUpperHalves);
      const auto pairs = [&](__m512i two_bytes) VLLM_INLINE {
        constexpr int kAndOr = 0xea;  // (a & b) | c
        const Vec even = Vec{_mm512_castsi512_ps(_mm512_ternarylogic_epi32(two_bytes, low, two_23, kAndOr))};
        const Vec odd = Vec{_mm512_castsi512_ps(_mm512_ternarylogic_epi32(two_bytes, high, two_15, kAndOr))};
        return _mm512_permutex2var_epi16(bits_of(even - minus_even).v, halves, bits_of(odd - minus_odd).v);
      };
      _mm512_storeu_si512(to, pairs(bytes.v));
      _mm512_storeu_si512(to + kPanel, pairs(_mm512_srli_epi32(bytes.v, 16)));
    }
  }
};
#endif

// A piece as floats, in the order of the dense panels: q - zero.
template <class To, bool kFour>
void widen_piece(const Columns& piece, float* to) {
  // Floats (4 bytes) of a panel for four columns.
  constexpr int kFloats = 4 / To::Format::kDepth * kPanel;
  for (int lane = 0; lane < kPanel; lane += kLanes) {
    const Ints zero_point = widen_u8(piece.header + 2 * kPanel + lane);
    const uint8_t* entries = piece.entries + lane * 4;
    float* out = to + lane;
    for (int64_t k = 0; k < piece.depth; k += kFour ? 8 : 4, entries += kStepBytes) {
      const Ints bytes = load_ints(entries);
      if constexpr (kFour) {
        To::template put<true>(bytes & splat_ints(0x0f0f0f0f), zero_point, out);
        To::template put<true>(down16<4>(bytes) & splat_ints(0x0f0f0f0f), zero_point, out + kFloats);
        out += 2 * kFloats;
      } else {
        To::template put<false>(bytes, zero_point, out);
        out += kFloats;
      }
    }
  }
}

// sums [rows][64] = sums + c * scale of each lane
void add_scaled(float* sums, const float* c, const uint8_t* header, int rows, bool first_piece) {
  for (int lane = 0; lane < kPanel; lane += kLanes) {
    const Vec scale = load_f16(reinterpret_cast<const uint16_t*>(header) + lane);
    for (int r = 0; r < rows; ++r) {
      float* sum = sums + r * kPanel + lane;
      const Vec piece = load(c + r * kPanel + lane) * scale;
      store(sum, first_piece ? piece : load(sum) + piece);
    }
  }
}

// Rows [begin, end), at most kRowBlock of them, times one panel.
template <class To, bool kFour>
void multiply_block(const Product& p, int64_t panel, int64_t begin, int64_t end) {
  using Format = typename To::Format;
  using A = typename Format::A;
  alignas(64) float floats[To::kPiece / Format::kDepth * kPanel];
  alignas(64) float sums[kRowBlock * kPanel];
  alignas(64) float c[kTileRows * kPanel];
  const uint8_t* data = p.packed + panel * p.layout.panel_bytes();
  const int64_t stride = round_up(p.layout.in_features, 8) / Format::kDepth * Format::kUnits;
  const A* x = static_cast<const A*>(p.x) + begin * stride;
  const int64_t size = p.layout.piece_size(To::kPiece), pieces = (p.layout.in_features + size - 1) / size;
  const int64_t rows = end - begin, tiles = (rows + kTileRows - 1) / kTileRows;
  for (int64_t i = 0; i < pieces; ++i) {
    const Columns piece = p.layout.piece(data, i, size);
    widen_piece<To, kFour>(piece, floats);
    const A* columns = x + piece.begin / Format::kDepth * Format::kUnits;
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t row = rows * t / tiles, next = rows * (t + 1) / tiles;
      const int count = static_cast<int>(next - row);
      micro<Format>(count, 0, columns + row * stride, stride, reinterpret_cast<const uint8_t*>(floats),
                    piece.depth / Format::kDepth, c, false, nullptr);
      add_scaled(sums + row * kPanel, c, piece.header, count, i == 0);
    }
  }
  finish_quantized(p.output, p.factors, sums, static_cast<int>(rows), begin, panel);
}

template <class To>
void multiply_rows(const Product& p, int64_t panel, int64_t begin, int64_t end) {
  const int64_t blocks = (end - begin + kRowBlock - 1) / kRowBlock;
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t row = begin + (end - begin) * i / blocks, next = begin + (end - begin) * (i + 1) / blocks;
    if (p.layout.bits == 4)
      multiply_block<To, true>(p, panel, row, next);
    else
      multiply_block<To, false>(p, panel, row, next);
  }
}

// x [rows][round_up(in_features, 8)] times a packed weight, with bias, residual, gate: out [rows][results]. x is fp32,
// or bf16 with x_dtype bf16, which the levels without instructions for bf16 do not take.
void weight_only_linear(const void* x, int64_t rows, const void* packed, const float* factors, const void* bias,
                        const void* residual, void* out, int64_t out_features, int64_t in_features, int64_t group,
                        int32_t bits, int32_t gate, [[maybe_unused]] int32_t x_dtype, int32_t dtype, int32_t out_dtype,
                        int32_t threads) {
  const Layout layout = {out_features, in_features, group, bits, gate != 0};
  const Product product = {layout, static_cast<const uint8_t*>(packed), factors, x,
                           output_of(layout, out, bias, residual, dtype, out_dtype, gate)};
  for_panels(layout, rows, 8 * kTileRows, threads, [&](int64_t panel, int64_t begin, int64_t end) {
#if defined(__AVX512BF16__)
    if (static_cast<DType>(x_dtype) == DType::bf16) return multiply_rows<ToBF16>(product, panel, begin, end);
#endif
    multiply_rows<ToF32>(product, panel, begin, end);
  });
}

}  // namespace

VLLM_KERNELS(quantized_weight_only) = {{"weight_only_linear", (void*)weight_only_linear}, VLLM_KERNELS_END};
