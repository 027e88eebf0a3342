// Copies that nobody has waited for yet, and waiting.
#pragma once

#include "memory.h"

#include <vector>

#include <ATen/ATen.h>

namespace simulated {

struct Upload {  // a copy from pinned memory that the GPU has not made yet, for all that the program knows
  int64_t position;
  at::Tensor source;
  uint64_t sum;
};

struct Download {  // what will be in pinned memory when it is waited for
  int64_t position;
  at::Tensor target, contents;
};

inline int64_t position = 0;  // counts what was launched
inline int waits_are = 0;  // 0: permitted; 1: an error
inline std::vector<Upload> uploads;
inline std::vector<Download> downloads;
inline thread_local int64_t current_stream = 0;

inline uint64_t sum_of(const at::Tensor& tensor) {
  auto bytes = static_cast<const unsigned char*>(tensor.storage().data());
  uint64_t sum = 1469598103934665603ull;
  size_t size = tensor.storage().nbytes();
  for (size_t i = 0; i < size; i++) sum = (sum ^ bytes[i]) * 1099511628211ull;
  return sum;
}

inline void check_not_capturing(const char* what) {
  TORCH_CHECK(!memory().captures(), "CUDA error: operation not permitted when stream is capturing (", what, ")");
}

// Waits for all that was launched up to a position. Raises when a source was written to before its copy was made.
inline void wait_until(int64_t until) {
  Guard guard(lock());
  std::vector<Download> arrived;
  for (auto& one : downloads)
    if (one.position <= until) arrived.push_back(one);
  std::erase_if(downloads, [&](const Download& one) { return one.position <= until; });
  for (auto& one : arrived) one.target.copy_(one.contents);
  bool changed = false;
  for (auto& one : uploads) changed |= one.position <= until && sum_of(one.source) != one.sum;
  std::erase_if(uploads, [&](const Upload& one) { return one.position <= until; });
  TORCH_CHECK(!changed, "pinned memory was written to while a copy out of it was under way");
}

inline void wait_for_all(const char* what) {
  check_not_capturing(what);
  TORCH_CHECK(waits_are == 0, "called a synchronizing CUDA operation: ", what);
  wait_until(position);
}

}  // namespace simulated
