// A product of activations of 8 bits with a packed weight: what all ways to compute it share.
#pragma once

#include "quantized_activations.h"
#include "quantized_output.h"

namespace {

struct Product {
  Layout layout;
  const uint8_t* packed;
  Activations x;
  const float* factors;
  Output output;
};

// sums [rows][64] += what dots [rows][64], of piece i and of rows from `row` on, stand for: zeros are taken off in
// integers, then scales are applied.
inline void add_piece(const Activations& x, int64_t i, const Columns& piece, int64_t row, int rows, const int32_t* dots,
                      float* sums) {
  for (int lane = 0; lane < kPanel; lane += kLanes) {
    const Vec scale = load_f16(reinterpret_cast<const uint16_t*>(piece.header) + lane);
    const Ints zero_point = widen_u8(piece.header + 2 * kPanel + lane);
    const Ints zero_points = zero_point | up<16>(zero_point);
    for (int r = 0; r < rows; ++r) {
      const int64_t of_row = (row + r) * x.pieces + i;
      const Ints dot = load_ints(dots + r * kPanel + lane);
      const Vec corrected = to_floats(add_dot_pairs(dot, zero_points, splat_ints(x.sums[of_row])));
      float* sum = sums + r * kPanel + lane;
      store(sum, fma(corrected, scale * splat(x.scales[of_row]), load(sum)));
    }
  }
}

}  // namespace
