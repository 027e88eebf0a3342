// Quantises rows of floats into panels, puts rows that are quantised already there, and reads rows back.
// What the numbers mean is said in ops/quantization.py; they are those of reference/quantization.py, bit for bit.
#include "ids.h"
#include "parallel.h"
#include "quantized_ints.h"
#include "quantized_layout.h"

namespace {

// A packed weight that can be written; see quantized_layout.h.
struct Target {
  Layout layout;
  uint8_t* packed;  // [panels][panel_bytes]
  float* factors;   // [panels][64]
};

// The least and the greatest of n numbers and 0.
struct Extremes {
  float least, greatest;
};

template <class T>
Extremes range_of(const typename T::type* x, int64_t n) {
  Vec least = zero(), greatest = zero();
  for_lanes(n, [&](int64_t i, Mask mask, bool whole) {
    const Vec v = whole ? T::load(x + i) : T::load(x + i, mask);
    least = min(v, least), greatest = max(v, greatest);
  });
  return {-largest(zero() - least), largest(greatest)};
}

float scale_of(Extremes range, int bits) {
  if (bits == 4) return (range.greatest - range.least) / 15.f;
  return (range.greatest > -range.least ? range.greatest : -range.least) / 127.f;
}

// The power of two that brings `greatest` into [2^14, 2^15).
float factor_of(float greatest) {
  int exponent;
  __builtin_frexpf(greatest, &exponent);
  exponent -= 15;
  return __builtin_ldexpf(1.f, exponent > -126 ? exponent : -126);
}

// Writes the scale of a lane and returns what is kept of it: all where a row has only one (the factor takes it).
float store_scale(const Target& target, uint8_t* header, int64_t lane, float scale, float factor) {
  const bool only = target.layout.groups() == 1;
  const uint16_t kept = _cvtss_sh(only ? 1.f : scale / factor, _MM_FROUND_TO_NEAREST_INT);
  std::memcpy(header + 2 * lane, &kept, sizeof(kept));
  return only ? scale : _cvtsh_ss(kept) * factor;
}

// Writes entries k to k + 15 of a lane; those at `depth` or beyond are left out. k is a multiple of 16.
void store_entries(uint8_t* entries, int bits, int64_t lane, int64_t k, int64_t depth, const uint8_t* q) {
  for (int i = 0; i < 16 && k + i < depth; i += 8) {
    const int32_t low = load_i32(q + i), high = load_i32(q + i + 4);
    if (bits == 4) {
      const int32_t both = low | high << 4;
      std::memcpy(entries + ((k + i) / 8 * kPanel + lane) * 4, &both, 4);
    } else {
      std::memcpy(entries + ((k + i) / 4 * kPanel + lane) * 4, &low, 4);
      std::memcpy(entries + ((k + i + 4) / 4 * kPanel + lane) * 4, &high, 4);
    }
  }
}

template <class T>
void quantize_row(const Target& target, const typename T::type* x, int64_t row) {
  const Layout& layout = target.layout;
  const auto [panel, lane] = layout.place_of(row);
  uint8_t* data = target.packed + panel * layout.panel_bytes();
  float greatest = 0.f;
  for (int64_t begin = 0; begin < layout.in_features; begin += layout.group) {
    const int64_t columns = smaller(layout.group, layout.in_features - begin);
    const float scale = scale_of(range_of<T>(x + begin, columns), layout.bits);
    greatest = scale > greatest ? scale : greatest;
  }
  const float factor = layout.groups() == 1 ? greatest : factor_of(greatest);
  target.factors[panel * kPanel + lane] = factor;
  const Vec top = splat(layout.bits == 4 ? 15.f : 255.f);
  for (int64_t g = 0; g < layout.groups(); ++g) {
    const int64_t begin = g * layout.group, columns = smaller(layout.group, layout.in_features - begin);
    const int64_t depth = round_up(columns, 8);
    uint8_t* header = data + g * layout.group_bytes();
    const Extremes range = range_of<T>(x + begin, columns);
    const float kept = store_scale(target, header, lane, scale_of(range, layout.bits), factor);
    const float divisor = kept > 0.f ? kept : __builtin_inff();
    float zero_point = 128.f;
    if (layout.bits == 4) {
      zero_point = __builtin_nearbyintf(-range.least / divisor);
      zero_point = zero_point < 15.f ? zero_point : 15.f;
    }
    header[2 * kPanel + lane] = static_cast<uint8_t>(zero_point);
    for_lanes(columns, [&](int64_t k, Mask mask, bool whole) {
      const Vec v = whole ? T::load(x + begin + k) : T::load(x + begin + k, mask);
      uint8_t q[kLanes];
      store_u8(q, to_ints(max(min(round(v / splat(divisor)) + splat(zero_point), top), zero())));
      store_entries(header + kHeader, layout.bits, lane, k, depth, q);
    });
  }
}

void store_quantized_row(const Target& target, const uint8_t* q, const float* scales, const uint8_t* zeros,
                         int64_t row) {
  const Layout& layout = target.layout;
  const auto [panel, lane] = layout.place_of(row);
  uint8_t* data = target.packed + panel * layout.panel_bytes();
  float greatest = 0.f;
  for (int64_t g = 0; g < layout.groups(); ++g) {
    const float size = __builtin_fabsf(scales[g]);
    greatest = size > greatest ? size : greatest;
  }
  const float factor = layout.groups() == 1 ? scales[0] : factor_of(greatest);
  target.factors[panel * kPanel + lane] = factor;
  for (int64_t g = 0; g < layout.groups(); ++g) {
    const int64_t begin = g * layout.group, columns = smaller(layout.group, layout.in_features - begin);
    uint8_t* header = data + g * layout.group_bytes();
    store_scale(target, header, lane, scales[g], factor);
    header[2 * kPanel + lane] = zeros[g];
    for (int64_t k = 0; k < columns; k += 16) {
      uint8_t sixteen[16] = {};
      std::memcpy(sixteen, q + begin + k, static_cast<size_t>(smaller(16, columns - k)));
      store_entries(header + kHeader, layout.bits, lane, k, round_up(columns, 8), sixteen);
    }
  }
}

// One row of floats from its lane.
template <class T>
void read_row(const Layout& layout, const uint8_t* packed, const float* factors, int64_t row, typename T::type* out) {
  const auto [panel, lane] = layout.place_of(row);
  const uint8_t* data = packed + panel * layout.panel_bytes();
  for (int64_t g = 0; g < layout.groups(); ++g) {
    const Columns group = layout.piece(data, g, layout.group);
    uint16_t half;
    std::memcpy(&half, group.header + 2 * lane, sizeof(half));
    const Vec scale = splat(_cvtsh_ss(half) * factors[panel * kPanel + lane]);
    const Vec zero_point = splat(group.header[2 * kPanel + lane]);
    for_lanes(group.columns, [&](int64_t k, Mask mask, bool whole) {
      int32_t four[4] = {};
      for (int i = 0; i < 4 && k + 4 * i < group.depth; ++i) {
        const int64_t at = k + 4 * i;
        if (layout.bits == 4)
          four[i] = load_i32(group.entries + (at / 8 * kPanel + lane) * 4) >> at % 8 & 0x0f0f0f0f;
        else
          four[i] = load_i32(group.entries + (at / 4 * kPanel + lane) * 4);
      }
      const Vec q = to_floats(widen_u8(reinterpret_cast<const uint8_t*>(four)));
      const Vec value = (q - zero_point) * scale;
      if (whole)
        T::store(out + group.begin + k, value);
      else
        T::store(out + group.begin + k, value, mask);
    });
  }
}

// Rows are handed out in blocks of a panel's, so that no two threads write to one cache line.
template <class Body>
void for_rows(const Layout& layout, int64_t start, int64_t count, int threads, const Body& body) {
  const int64_t block = layout.rows_of_panel(), begin = start / block, end = (start + count + block - 1) / block;
  parallel_for(end - begin, block * layout.in_features * 2, threads, [&](int64_t i) {
    const int64_t from = (begin + i) * block, to = from + block;
    for (int64_t row = from > start ? from : start; row < to && row < start + count; ++row) body(row);
  });
}

// rows [count][in_features], `stride` elements from row to row -> rows start.. of the packed weight.
void quantized_fill(const void* rows, int64_t stride, int32_t dtype, int64_t start, int64_t count, void* packed,
                    float* factors, int64_t out_features, int64_t in_features, int64_t group, int32_t bits,
                    int32_t gated, int32_t threads) {
  const Target target = {{out_features, in_features, group, bits, gated != 0}, static_cast<uint8_t*>(packed), factors};
  with_type(static_cast<DType>(dtype), [&](auto type) {
    using T = decltype(type);
    const auto* x = static_cast<const typename T::type*>(rows);
    for_rows(target.layout, start, count, threads,
             [&](int64_t row) { quantize_row<T>(target, x + (row - start) * stride, row); });
  });
}

// q uint8 [count][in_features], scales fp32 and zeros uint8 [count][groups] -> rows start.. of the packed weight.
void quantized_store(const uint8_t* q, const float* scales, const uint8_t* zeros, int64_t start, int64_t count,
                     void* packed, float* factors, int64_t out_features, int64_t in_features, int64_t group,
                     int32_t bits, int32_t gated, int32_t threads) {
  const Target target = {{out_features, in_features, group, bits, gated != 0}, static_cast<uint8_t*>(packed), factors};
  const int64_t groups = target.layout.groups();
  for_rows(target.layout, start, count, threads, [&](int64_t row) {
    const int64_t i = row - start;
    store_quantized_row(target, q + i * in_features, scales + i * groups, zeros + i * groups, row);
  });
}

// Rows `ids` [count] -> out [count][in_features] in `dtype`. Returns 0, or 1 and writes nothing when one is not there.
int32_t quantized_rows(const int64_t* ids, int64_t count, const void* packed, const float* factors, void* out,
                       int32_t dtype, int64_t out_features, int64_t in_features, int64_t group, int32_t bits,
                       int32_t gated, int32_t threads) {
  if (!all_inside(ids, count, out_features)) return 1;
  const Layout layout = {out_features, in_features, group, bits, gated != 0};
  with_type(static_cast<DType>(dtype), [&](auto type) {
    using T = decltype(type);
    auto* result = static_cast<typename T::type*>(out);
    parallel_for(count, in_features * 16, threads, [&](int64_t i) {
      read_row<T>(layout, static_cast<const uint8_t*>(packed), factors, ids[i], result + i * in_features);
    });
  });
  return 0;
}

}  // namespace

VLLM_KERNELS(quantized_pack) = {VLLM_KERNEL(quantized_fill),
                                VLLM_KERNEL(quantized_store),
                                VLLM_KERNEL(quantized_rows),
                                VLLM_KERNELS_END};
