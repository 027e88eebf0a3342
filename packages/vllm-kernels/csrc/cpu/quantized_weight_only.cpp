// Products of activations as they are with weights of 8 or 4 bits.
//
// A piece of a panel becomes floats in the first cache, once for many rows, and meets the register tile of the dense
// kernels. The floats are whole numbers, q - zero, which even bf16 holds exactly; scales are applied to the sums of a
// piece, in fp32. So the weight is not rounded again, and pieces are added in their order for every number of rows.
#include "gemm_micro.h"
#include "quantized_ints.h"
#include "quantized_output.h"
#include "unroll.h"
#if defined(__AMX_BF16__)
#include "quantized_amx_bf16.h"
#endif

namespace {

struct Product {
  Layout layout;
  const uint8_t* packed;
  const float* factors;
  const void* x;   // bf16 or fp32: [rows][stride], zeros behind in_features
  int64_t stride;  // in_features rounded up to a multiple of 8
  Output output;
};

template <int from>
inline Vec byte_of(Ints bytes, Vec zero_point) {
  return to_floats((from == 24 ? down<24>(bytes) : down<from>(bytes) & splat_ints(255))) - zero_point;
}

// How q - zero of four columns (k) and sixteen lanes becomes floats in the order of a Format. Zeros are made once for
// many columns; widen() makes the vectors of the columns, keep() stores one, add() multiplies by one as the Format
// does.
template <bool four>
struct ToF32 {
  using Format = F32Format;
  static constexpr int64_t kPiece = 64;  // columns: 16 KiB of floats
  static constexpr bool kFour = four;    // entries of 4 bits
  struct Zeros {
    Vec minus;
  };
  static Zeros zeros(Ints zero_point) { return {to_floats(zero_point)}; }
  using Wide = Vec;
  static void widen(Ints bytes, const Zeros& zeros, Vec (&to)[4]) {
    to[0] = byte_of<0>(bytes, zeros.minus);
    to[1] = byte_of<8>(bytes, zeros.minus);
    to[2] = byte_of<16>(bytes, zeros.minus);
    to[3] = byte_of<24>(bytes, zeros.minus);
  }
  static void keep(float* to, Vec wide) { store(to, wide); }
  static Vec add(Vec sum, float x, Vec wide) { return fma(splat(x), wide, sum); }
};

#if defined(__AVX512BF16__)
struct ToBF16 {
  using Wide = __m512i;
  static void keep(float* to, __m512i wide) { _mm512_storeu_si512(to, wide); }
  static Vec add(Vec sum, const BF16Pair& x, __m512i wide) {
    return {_mm512_dpbf16_ps(sum.v, (__m512bh)x.in_all_lanes(), (__m512bh)wide)};
  }
};

// 4 bits: from a table, whose entry i is i - 16.
struct FourToBF16 : ToBF16 {
  using Format = BF16Format;
  static constexpr int64_t kPiece = 128;
  static constexpr bool kFour = true;
  struct Zeros {
    __m512i plus;  // makes an entry an index, in each byte
  };
  static Zeros zeros(Ints zero_point) {
    const __m512i bytes = _mm512_mullo_epi32(zero_point.v, _mm512_set1_epi32(0x01010101));
    return {_mm512_sub_epi8(_mm512_set1_epi8(16), bytes)};
  }
  static void widen(Ints bytes, const Zeros& zeros, __m512i (&to)[2]) {
    alignas(64) static const uint16_t kTable[32] = {
        0xc180, 0xc170, 0xc160, 0xc150, 0xc140, 0xc130, 0xc120, 0xc110, 0xc100, 0xc0e0, 0xc0c0,
        0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80, 0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0,
        0x40c0, 0x40e0, 0x4100, 0x4110, 0x4120, 0x4130, 0x4140, 0x4150, 0x4160, 0x4170};
    const __m512i table = _mm512_load_si512(kTable);
    // Only the lower five bits of a word count as an index, so a byte may stand twice in its word.
    const __m512i spread = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 0, 1, 1, 4, 4, 5, 5, 8, 8, 9, 9, 12, 12, 13, 13));
    const __m512i index = _mm512_add_epi8(bytes.v, zeros.plus);
    const __m512i first_pairs = _mm512_shuffle_epi8(index, spread);
    const __m512i second_pairs = _mm512_shuffle_epi8(index, _mm512_add_epi8(spread, _mm512_set1_epi8(2)));
    to[0] = _mm512_permutexvar_epi16(first_pairs, table);
    to[1] = _mm512_permutexvar_epi16(second_pairs, table);
  }
};

// 8 bits: a byte in the last 8 bits of 2^23, or one place higher in 2^15, is that number plus the byte.
struct EightToBF16 : ToBF16 {
  using Format = BF16Format;
  static constexpr int64_t kPiece = 128;
  static constexpr bool kFour = false;
  struct Zeros {
    Vec even, odd;
  };
  static Zeros zeros(Ints zero_point) {
    return {to_floats(zero_point) + splat(8388608.f), to_floats(zero_point) + splat(32768.f)};
  }
  static void widen(Ints bytes, const Zeros& zeros, __m512i (&to)[2]) {
    to[0] = pairs(bytes.v, zeros);
    to[1] = pairs(_mm512_srli_epi32(bytes.v, 16), zeros);
  }
  static __m512i pairs(__m512i two_bytes, const Zeros& zeros) {
    constexpr int kAndOr = 0xea;  // (a & b) | c
    const __m512i two_23 = _mm512_set1_epi32(0x4b000000), two_15 = _mm512_set1_epi32(0x47000000);
    const __m512i low = _mm512_set1_epi32(0xff), high = _mm512_set1_epi32(0xff00);
    const Vec even = {_mm512_castsi512_ps(_mm512_ternarylogic_epi32(two_bytes, low, two_23, kAndOr))};
    const Vec odd = {_mm512_castsi512_ps(_mm512_ternarylogic_epi32(two_bytes, high, two_15, kAndOr))};
    // The upper halves of both side by side; the lower ones are 0, as bf16 holds whole numbers to 255.
    alignas(64) static const uint16_t kUpperHalves[32] = {1,  33, 3,  35, 5,  37, 7,  39, 9,  41, 11,
                                                          43, 13, 45, 15, 47, 17, 49, 19, 51, 21, 53,
                                                          23, 55, 25, 57, 27, 59, 29, 61, 31, 63};
    return _mm512_permutex2var_epi16(bits_of(even - zeros.even).v, _mm512_load_si512(kUpperHalves),
                                     bits_of(odd - zeros.odd).v);
  }
};
#endif

constexpr int kVecs = kPanel / kLanes;

template <class To>
VLLM_INLINE inline void zeros_of(const Columns& piece, typename To::Zeros (&zeros)[kVecs]) {
  unrolled<kVecs>([&](int v) VLLM_INLINE { zeros[v] = To::zeros(widen_u8(piece.header + 2 * kPanel + v * kLanes)); });
}

// Calls body(v, i, wide) for a step of the entries: `wide` is vector v of the columns that step i of the Format has.
template <class To, class Body>
VLLM_INLINE inline void widen_step(const uint8_t* entries, const typename To::Zeros (&zeros)[kVecs], const Body& body) {
  constexpr int kSteps = 4 / To::Format::kDepth;  // of the Format, for four columns
  unrolled<kVecs>([&](int v) VLLM_INLINE {
    const Ints bytes = load_ints(entries + v * 64);
    unrolled<To::kFour ? 2 : 1>([&](int half) VLLM_INLINE {
      typename To::Wide wide[kSteps];
      To::widen(!To::kFour ? bytes : (half ? down16<4>(bytes) : bytes) & splat_ints(0x0f0f0f0f), zeros[v], wide);
      unrolled<kSteps>([&](int i) VLLM_INLINE { body(v, half * kSteps + i, wide[i]); });
    });
  });
}

// Columns in a step of the entries.
template <class To>
constexpr int kStepColumns = To::kFour ? 8 : 4;

// A piece as floats, in the order of the dense panels: q - zero.
template <class To>
void widen_piece(const Columns& piece, float* to) {
  typename To::Zeros zeros[kVecs];
  zeros_of<To>(piece, zeros);
  const uint8_t* entries = piece.entries;
  for (int64_t k = 0; k < piece.depth; k += kStepColumns<To>, entries += kStepBytes) {
    widen_step<To>(entries, zeros, [&](int v, int i, typename To::Wide wide) VLLM_INLINE {
      To::keep(to + i * kPanel + v * kLanes, wide);
    });
    to += kStepColumns<To> / To::Format::kDepth * kPanel;
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

// c [kRows][64] = kRows rows times a piece. Each vector of floats is multiplied as it is made, in the order of the
// register tile.
template <class To, int kRows>
void multiply_piece(const Columns& piece, const typename To::Format::A* x, int64_t stride, float* c) {
  typename To::Zeros zeros[kVecs];
  zeros_of<To>(piece, zeros);
  Vec sums[kRows][kVecs];
  unrolled<kRows>([&](int r) VLLM_INLINE { unrolled<kVecs>([&](int v) VLLM_INLINE { sums[r][v] = zero(); }); });
  const uint8_t* entries = piece.entries;
  for (int64_t k = 0; k < piece.depth; k += kStepColumns<To>, entries += kStepBytes) {
    widen_step<To>(entries, zeros, [&](int v, int i, typename To::Wide wide) VLLM_INLINE {
      unrolled<kRows>([&](int r) VLLM_INLINE { sums[r][v] = To::add(sums[r][v], x[r * stride + i], wide); });
    });
    x += kStepColumns<To> / To::Format::kDepth;
  }
  unrolled<kRows>([&](int r) VLLM_INLINE {
    unrolled<kVecs>([&](int v) VLLM_INLINE { store(c + r * kPanel + v * kLanes, sums[r][v]); });
  });
}

// Rows [row, row + kRows) times one panel, for so few rows that storing the floats would take longer than their use.
template <class To, int kRows>
void multiply_few(const Product& p, int64_t panel, int64_t row) {
  using Format = typename To::Format;
  alignas(64) float sums[kRows * kPanel], c[kRows * kPanel];
  const uint8_t* data = p.packed + panel * p.layout.panel_bytes();
  const int64_t stride = p.stride / Format::kDepth * Format::kUnits;
  const auto* x = static_cast<const typename Format::A*>(p.x) + row * stride;
  const int64_t size = p.layout.piece_size(To::kPiece), pieces = (p.layout.in_features + size - 1) / size;
  for (int64_t i = 0; i < pieces; ++i) {
    const Columns piece = p.layout.piece(data, i, size);
    multiply_piece<To, kRows>(piece, x + piece.begin / Format::kDepth * Format::kUnits, stride, c);
    add_scaled(sums, c, piece.header, kRows, i == 0);
  }
  finish_quantized(p.output, p.factors, sums, kRows, row, panel);
}

// Rows [begin, end), at most kRowBlock of them, times one panel.
template <class To>
void multiply_block(const Product& p, int64_t panel, int64_t begin, int64_t end) {
  using Format = typename To::Format;
  using A = typename Format::A;
  alignas(64) float floats[To::kPiece / Format::kDepth * kPanel];
  alignas(64) float sums[kRowBlock * kPanel];
  alignas(64) float c[kTileRows * kPanel];
  const uint8_t* data = p.packed + panel * p.layout.panel_bytes();
  const int64_t stride = p.stride / Format::kDepth * Format::kUnits;
  const A* x = static_cast<const A*>(p.x) + begin * stride;
  const int64_t size = p.layout.piece_size(To::kPiece), pieces = (p.layout.in_features + size - 1) / size;
  const int64_t rows = end - begin, tiles = (rows + kTileRows - 1) / kTileRows;
  for (int64_t i = 0; i < pieces; ++i) {
    const Columns piece = p.layout.piece(data, i, size);
    widen_piece<To>(piece, floats);
    const A* columns = x + piece.begin / Format::kDepth * Format::kUnits;
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t row = rows * t / tiles, next = rows * (t + 1) / tiles;
      const int count = static_cast<int>(next - row);
      // The next piece is fetched meanwhile: it stands behind this one, in as many lines for each step.
      constexpr int kLines = Format::kDepth * kPanel / (To::kFour ? 2 : 1) / 64;
      micro<Format>(count, t == 0 ? (kLines ? kLines : 1) : 0, columns + row * stride, stride,
                    reinterpret_cast<const uint8_t*>(floats), piece.depth / Format::kDepth, c, false,
                    piece.entries + p.layout.bytes_of(piece.depth));
      add_scaled(sums + row * kPanel, c, piece.header, count, i == 0);
    }
  }
  finish_quantized(p.output, p.factors, sums, static_cast<int>(rows), begin, panel);
}

#if defined(__AMX_BF16__)
// The same on tiles: for every number of rows, as they round otherwise than vectors. Pieces have whole tiles, but for
// the last one, which meets zeros. Up to 15 rows behind `end` are read.
template <class To>
void multiply_block_amx(const Product& p, int64_t panel, int64_t begin, int64_t end) {
  constexpr int kRows = 2 * kTileSide;
  alignas(64) float floats[To::kPiece / 2 * kPanel] = {};
  alignas(64) float sums[kRowBlock * kPanel];
  alignas(64) float c[kRows * kPanel];
  const uint8_t* data = p.packed + panel * p.layout.panel_bytes();
  const int64_t size = p.layout.piece_size(To::kPiece), pieces = (p.layout.in_features + size - 1) / size;
  const int rows = static_cast<int>(end - begin);
  for (int64_t i = 0; i < pieces; ++i) {
    const Columns piece = p.layout.piece(data, i, size);
    widen_piece<To>(piece, floats);
    for (int r = 0; r < rows; r += kRows) {
      const int count = rows - r < kRows ? rows - r : kRows;
      const auto* x = static_cast<const uint8_t*>(p.x) + 2 * ((begin + r) * p.stride + piece.begin);
      tile_bf16(count, x, 2 * p.stride, floats, round_up(piece.depth, kPairColumns) / kPairColumns, c);
      add_scaled(sums + r * kPanel, c, piece.header, count, i == 0);
    }
  }
  finish_quantized(p.output, p.factors, sums, rows, begin, panel);
}
#endif

// Rows [begin, end), at most kRowBlock of them, times one panel.
template <class To>
void multiply_panel(const Product& p, int64_t panel, int64_t begin, int64_t end) {
#if defined(__AMX_BF16__)
  if constexpr (To::Format::kDepth == 2) {
    if (p.layout.piece_size(To::kPiece) % kPairColumns == 0) {
      tiles_begin();
      multiply_block_amx<To>(p, panel, begin, end);
      return tiles_end();
    }
  }
#endif
  switch (end - begin) {
    case 1: return multiply_few<To, 1>(p, panel, begin);
    case 2: return multiply_few<To, 2>(p, panel, begin);
    case 3: return multiply_few<To, 3>(p, panel, begin);
    case 4: return multiply_few<To, 4>(p, panel, begin);
    default: return multiply_block<To>(p, panel, begin, end);
  }
}

// x [rows][stride] times a packed weight, with bias, residual, gate: out [rows][results]. x is fp32, or bf16 with
// x_dtype bf16, which the levels without instructions for bf16 do not take. stride: a multiple of 8, and zeros behind
// in_features. With tiles a multiple of 32, and memory for a multiple of 16 rows.
void weight_only_linear(const void* x, int64_t stride, int64_t rows, const void* packed, const float* factors,
                        const void* bias, const void* residual, void* out, int64_t out_features, int64_t in_features,
                        int64_t group, int32_t bits, int32_t gate, int32_t x_dtype, int32_t dtype,
                        int32_t out_dtype, int32_t threads) {
  const Layout layout = {out_features, in_features, group, bits, gate != 0};
  const Product product = {layout, static_cast<const uint8_t*>(packed), factors, x, stride,
                           output_of(layout, out, bias, residual, dtype, out_dtype, gate)};
  const auto multiply = [&](auto to) {
    for_panels(layout, rows, stride * bytes_of(static_cast<DType>(x_dtype)), threads,
               [&](int64_t panel, int64_t begin, int64_t end) {
                 multiply_panel<decltype(to)>(product, panel, begin, end);
               });
  };
#if defined(__AVX512BF16__)
  if (static_cast<DType>(x_dtype) == DType::bf16)
    return bits == 4 ? multiply(FourToBF16()) : multiply(EightToBF16());
#endif
  bits == 4 ? multiply(ToF32<true>()) : multiply(ToF32<false>());
}

}  // namespace

VLLM_KERNELS(quantized_weight_only) = {VLLM_KERNEL(weight_only_linear), VLLM_KERNELS_END};
