// Where a quantised weight's numbers stand in memory. vllm_kernels/cpu/quantization.py has the sizes too.
//
// A panel holds 64 rows of the weight (output columns), called lanes here, and is one stream of memory, in the order in
// which it is multiplied. It consists of the groups of input columns, each of them
//
//   fp16 scale[64], uint8 zero[64], entries
//
// with the entries of four neighbouring input columns side by side, as dot products of bytes want them:
//
//   8 bits: uint8 [depth / 4][64][4]    entry (k, lane) at [k / 4][lane][k % 4]
//   4 bits: uint8 [depth / 8][64][4]    in the same order: the low nibbles are those of the first four columns of eight
//
// depth: columns of the group, rounded up to a multiple of 8 (which only changes the last group). Entries and lanes
// that the weight does not have hold anything: they meet activations of 0, or results that nobody stores.
//
// An entry stands for (q - zero) * scale * factor, where `factor` is the lane's own, an fp32 number in another array.
//
// A gated weight has in each panel 32 rows of the gate (lanes 0 to 31) and the same 32 rows of the value.
#pragma once

#include "pack.h"

namespace {

constexpr int64_t kHeader = 3 * kPanel;    // bytes of scales and zeros
constexpr int64_t kActivationGroup = 512;  // columns of activations that share a scale, at most

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Some neighbouring columns of one group: [begin, begin + columns), padded to `depth` in the panel.
struct Columns {
  int64_t begin, columns, depth;
  const uint8_t *header, *entries;
};

struct Layout {
  int64_t out_features, in_features;
  int64_t group;  // columns that share a scale: in_features if all do
  int bits;
  bool gated;

  int64_t rows_of_panel() const { return gated ? kHalfPanel : kPanel; }
  int64_t results() const { return gated ? out_features / 2 : out_features; }  // columns of the product
  int64_t panels() const { return (results() + rows_of_panel() - 1) / rows_of_panel(); }
  int64_t groups() const { return (in_features + group - 1) / group; }
  int64_t bytes_of(int64_t depth) const { return depth * kPanel * bits / 8; }
  int64_t group_bytes() const { return kHeader + bytes_of(group); }  // of each group but the last
  int64_t panel_bytes() const {
    const int64_t last = groups() - 1;
    return last * group_bytes() + kHeader + bytes_of(round_up(in_features - last * group, 8));
  }

  // The greatest number of columns, at most `most`, that pieces of a panel can have without one in two groups.
  int64_t piece_size(int64_t most) const {
    if (groups() == 1) return most;
    int64_t size = smaller(most, group);
    while (group % size) size -= 8;
    return size;
  }

  // Piece `i` of a panel cut in pieces of `size` columns.
  Columns piece(const uint8_t* panel, int64_t i, int64_t size) const {
    const int64_t begin = i * size, g = begin / group, first = begin - g * group;
    const int64_t columns = smaller(size, in_features - begin);
    const uint8_t* header = panel + g * group_bytes();
    return {begin, columns, round_up(columns, 8), header, header + kHeader + bytes_of(first)};
  }

  struct Place {
    int64_t panel, lane;
  };
  Place place_of(int64_t row) const {
    if (!gated) return {row / kPanel, row % kPanel};
    const bool value = row >= out_features / 2;
    if (value) row -= out_features / 2;
    return {row / kHalfPanel, row % kHalfPanel + (value ? kHalfPanel : 0)};
  }
};

}  // namespace
