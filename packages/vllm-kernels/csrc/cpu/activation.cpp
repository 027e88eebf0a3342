// Activations of whole tensors: in one pass, in fp32, rounded once.
#include "activation.h"
#include "parallel.h"

namespace {

// As vllm_kernels/cpu/activation.py numbers them.
enum class Kind : int32_t { silu = 0, gelu = 1, gelu_tanh = 2, relu = 3, swigluoai = 4 };

// Numbers that a thread takes at a time.
constexpr int64_t kPiece = 2048;

// Calls body(activation) with the function of a kind: Vec -> Vec.
template <class Body>
void with_kind(Kind kind, const Body& body) {
  switch (kind) {
    case Kind::silu: return body([](Vec x) { return silu(x); });
    case Kind::gelu: return body([](Vec x) { return gelu(x); });
    case Kind::gelu_tanh: return body([](Vec x) { return gelu_tanh(x); });
    case Kind::relu: return body([](Vec x) { return relu(x); });
    case Kind::swigluoai: return;  // a gate only
  }
}

// Calls body(gate) with the function of a kind: (Vec, Vec) -> Vec.
template <class Body>
void with_gate(Kind kind, const Body& body) {
  if (kind == Kind::swigluoai) return body([](Vec x, Vec value) { return swigluoai(x, value); });
  with_kind(kind, [&](auto f) { body([f](Vec x, Vec value) { return f(x) * value; }); });
}

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// out[i] = f(x[i]) for i of [0, count).
void activate(const void* x, void* out, int64_t count, int32_t kind, int32_t dtype, int32_t threads) {
  with_type(static_cast<DType>(dtype), [&](auto type) {
    using T = decltype(type);
    using E = typename T::type;
    with_kind(static_cast<Kind>(kind), [&](auto f) {
      parallel_for((count + kPiece - 1) / kPiece, kPiece * 2 * sizeof(E), threads, [&](int64_t piece) {
        const E* from = (const E*)x + piece * kPiece;
        E* to = (E*)out + piece * kPiece;
        for_lanes(smaller(kPiece, count - piece * kPiece), [&](int64_t i, Mask m, bool whole) {
          if (whole)
            T::store(to + i, f(T::load(from + i)));
          else
            T::store(to + i, f(T::load(from + i, m)), m);
        });
      });
    });
  });
}

// out[r][i] = f(x[r][i]) * x[r][size + i], or another gate of both: rows of x are `stride` elements apart, those of
// out `size`.
void activate_and_multiply(const void* x, int64_t stride, void* out, int64_t rows, int64_t size, int32_t kind,
                           int32_t dtype, int32_t threads) {
  const int64_t pieces = (size + kPiece - 1) / kPiece;
  with_type(static_cast<DType>(dtype), [&](auto type) {
    using T = decltype(type);
    using E = typename T::type;
    with_gate(static_cast<Kind>(kind), [&](auto f) {
      parallel_for(rows * pieces, smaller(kPiece, size) * 3 * sizeof(E), threads, [&](int64_t part) {
        const int64_t row = part / pieces, start = part % pieces * kPiece;
        const E *gate = (const E*)x + row * stride + start, *value = gate + size;
        E* to = (E*)out + row * size + start;
        for_lanes(smaller(kPiece, size - start), [&](int64_t i, Mask m, bool whole) {
          if (whole)
            T::store(to + i, f(T::load(gate + i), T::load(value + i)));
          else
            T::store(to + i, f(T::load(gate + i, m), T::load(value + i, m)), m);
        });
      });
    });
  });
}

}  // namespace

VLLM_KERNELS(activation) = {
    VLLM_KERNEL(activate),
    VLLM_KERNEL(activate_and_multiply),
    VLLM_KERNELS_END,
};
