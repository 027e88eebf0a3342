// Products of activations of 8 bits, quantised as they come, with weights of 8 or 4 bits.
//
// Sums of products of integers are exact, and pieces of columns are added up in fp32 in their order: a result is the
// same at every level, for every number of rows and threads.
#include "gemm_share.h"
#include "quantized_product.h"
#include "unroll.h"
#if defined(__AMX_INT8__)
#include "quantized_amx.h"
#endif

namespace {

// A tile is kMaxRows rows of activations times a panel, of which kVectors times sixteen lanes are in registers at a
// time.
#if defined(__AVX512F__)
constexpr int kMaxRows = 6, kVectors = 4;
#else
constexpr int kMaxRows = 3, kVectors = 1;
#endif

// dots[r][lane] = the dot products of kRows rows with 16 * kVecs lanes, over the columns of one piece; dots has a
// stride of a panel. On the way, kAhead lines for each step are fetched from `ahead` on.
template <bool kFour, int kRows, int kVecs, int kAhead>
inline void dot_piece(const uint8_t* entries, const int8_t* x, int64_t stride, int64_t depth,
                                  int32_t* dots, const uint8_t* ahead) {
  using D = Dot<kFour>;
  Ints sums[kRows][kVecs];
  unrolled<kRows>([&](int r) VLLM_INLINE { unrolled<kVecs>([&](int v) VLLM_INLINE { sums[r][v] = zero_ints(); }); });
  for (int64_t k = 0; k < depth; k += kFour ? 8 : 4, entries += kStepBytes, ahead += kAhead * 64) {
    fetch<kAhead>(ahead);
    unrolled<kFour ? 2 : 1>([&](int half) VLLM_INLINE {
      typename D::Weights w[kVecs];
      unrolled<kVecs>([&](int v) VLLM_INLINE {
        const Ints bytes = load_ints(entries + v * 64);
        w[v] = D::weights(!kFour ? bytes : (half ? down16<4>(bytes) : bytes) & splat_ints(0x0f0f0f0f));
      });
      unrolled<kRows>([&](int r) VLLM_INLINE {
        const auto a = D::activations(load_i32(x + r * stride + k + 4 * half));
        unrolled<kVecs>([&](int v) VLLM_INLINE { sums[r][v] = D::add(sums[r][v], w[v], a); });
      });
    });
  }
  unrolled<kRows>([&](int r) VLLM_INLINE {
    unrolled<kVecs>([&](int v) VLLM_INLINE { store_ints(dots + r * kPanel + v * 16, sums[r][v]); });
  });
}

// Rows [row, row + kRows) times one panel. (Their sums are this function's own: as part of a larger array they keep g++
// from having the dot products in registers.)
template <bool kFour, int kRows, int kAhead>
__attribute__((noinline)) void multiply_tile(const Product& p, int64_t panel, int64_t row, const uint8_t* ahead) {
  constexpr int kVecs = kRows == 1 && kVectors < 2 ? 2 : kVectors;
  alignas(64) float sums[kRows * kPanel] = {};
  alignas(64) int32_t dots[kRows * kPanel];
  const uint8_t* data = p.packed + panel * p.layout.panel_bytes();
  const int8_t* x = p.x.q + row * p.x.stride;
  for (int64_t i = 0; i < p.x.pieces; ++i) {
    const Columns piece = p.layout.piece(data, i, p.x.piece);
    dot_piece<kFour, kRows, kVecs, kAhead>(piece.entries, x + piece.begin, p.x.stride, piece.depth, dots, ahead);
    for (int lane = 16 * kVecs; lane < kPanel; lane += 16 * kVecs)
      dot_piece<kFour, kRows, kVecs, 0>(piece.entries + lane * 4, x + piece.begin, p.x.stride, piece.depth,
                                        dots + lane, ahead);
    ahead += kAhead * 64 * (piece.depth / (kFour ? 8 : 4));
    add_piece(p.x, i, piece, row, kRows, dots, sums);
  }
  finish_quantized(p.output, p.factors, sums, kRows, row, panel);
}

template <bool kFour, int kAhead, int kRows = kMaxRows>
void multiply_rows(const Product& p, int64_t panel, int64_t row, int rows, const uint8_t* ahead) {
  if constexpr (kRows > 0) {
    if (rows == kRows)
      multiply_tile<kFour, kRows, kAhead>(p, panel, row, ahead);
    else
      multiply_rows<kFour, kAhead, kRows - 1>(p, panel, row, rows, ahead);
  }
}

template <bool kFour>
void multiply_rows(const Product& p, int lines, int64_t panel, int64_t row, int rows, const uint8_t* ahead) {
  switch (lines) {
    case 0: return multiply_rows<kFour, 0>(p, panel, row, rows, ahead);
    case 1: return multiply_rows<kFour, 1>(p, panel, row, rows, ahead);
    default: return multiply_rows<kFour, 2>(p, panel, row, rows, ahead);
  }
}

// Rows [begin, end) times one panel. Tiles of rows share the fetching of the next panel; a single one is as fast as
// memory without.
void multiply_panel(const Product& p, int64_t panel, int64_t begin, int64_t end) {
#if defined(__AMX_INT8__)
  if (end - begin >= kFewestAmxRows) return multiply_panel_amx(p, panel, begin, end);
#endif
  const int rows = static_cast<int>(end - begin), tiles = (rows + kMaxRows - 1) / kMaxRows;
  const int64_t steps = p.layout.bytes_of(round_up(p.layout.in_features, 8)) / kStepBytes;
  const uint8_t* ahead = p.packed + (panel + 1) * p.layout.panel_bytes();
  for (int t = 0; t < tiles; ++t) {
    const int row = tile_begin(rows, t, tiles, kMaxRows), count = tile_begin(rows, t + 1, tiles, kMaxRows) - row;
    const int lines = tiles == 1 ? 0 : lines_of(t, tiles);
    if (p.layout.bits == 4)
      multiply_rows<true>(p, lines, panel, begin + row, count, ahead);
    else
      multiply_rows<false>(p, lines, panel, begin + row, count, ahead);
    ahead += steps * lines * 64;
  }
}

// x [rows][in_features] (dtype) times a packed weight, with bias, residual, gate: out [rows][results].
// scratch: (rows + 15) * (activation_stride + 8 * pieces) bytes, as tiles are read whole.
void quantized_linear(const void* x, int64_t rows, const void* packed, const float* factors, const void* bias,
                      const void* residual, void* out, void* scratch, int64_t out_features, int64_t in_features,
                      int64_t group, int32_t bits, int32_t gate, int32_t dtype, int32_t out_dtype, int32_t threads) {
  const Layout layout = {out_features, in_features, group, bits, gate != 0};
  const Activations activations = activations_in(scratch, rows + 15, in_features, layout.piece_size(kActivationGroup));
  const Product product = {layout,
                           static_cast<const uint8_t*>(packed),
                           activations,
                           factors,
                           output_of(layout, out, bias, residual, dtype, out_dtype, gate)};
  with_type(static_cast<DType>(dtype), [&](auto type) {
    using T = decltype(type);
    parallel_for(rows, in_features * 4, threads, [&](int64_t row) {
      const auto* from = static_cast<const typename T::type*>(x) + row * in_features;
      quantize_activations<T>(from, in_features, activations, row);
    });
  });
  for_panels(layout, rows, activations.stride, threads,
             [&](int64_t panel, int64_t begin, int64_t end) { multiply_panel(product, panel, begin, end); });
}

}  // namespace

VLLM_KERNELS(quantized_linear) = {VLLM_KERNEL(quantized_linear), VLLM_KERNELS_END};
