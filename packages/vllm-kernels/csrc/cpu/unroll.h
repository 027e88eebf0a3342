// Loops that are written out by the compiler, so that an array indexed by their counters lives in registers. Without
// this, g++ unrolls such loops too late, and stores every element to memory in each round of the loop around them.
#pragma once

#define VLLM_INLINE __attribute__((always_inline))

namespace {

// body(0), body(1), ..., body(n - 1); write the body as [&](int i) VLLM_INLINE { ... }.
template <int n, class Body>
VLLM_INLINE inline void unrolled(const Body& body) {
  if constexpr (n > 0) {
    unrolled<n - 1>(body);
    body(n - 1);
  }
}

}  // namespace
