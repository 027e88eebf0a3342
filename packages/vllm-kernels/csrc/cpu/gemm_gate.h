// The gate of a gated projection, as its epilogue applies it.
#pragma once

#include "activation.h"

namespace {

enum class Gate : int32_t { none = 0, silu = 1, gelu = 2, gelu_tanh = 3, swigluoai = 4 };

inline Vec apply(Gate gate, Vec x, Vec value) {
  switch (gate) {
    case Gate::silu: return silu(x) * value;
    case Gate::gelu: return gelu(x) * value;
    case Gate::gelu_tanh: return gelu_tanh(x) * value;
    case Gate::swigluoai: return swigluoai(x, value);
    default: return x * value;
  }
}

}  // namespace
