// The activation of a gated projection, as its epilogue applies it.
#pragma once

#include "activation.h"

namespace {

enum class Gate : int32_t { none = 0, silu = 1, gelu = 2, gelu_tanh = 3 };

inline Vec activate(Gate gate, Vec x) {
  switch (gate) {
    case Gate::silu: return silu(x);
    case Gate::gelu: return gelu(x);
    case Gate::gelu_tanh: return gelu_tanh(x);
    default: return x;
  }
}

}  // namespace
