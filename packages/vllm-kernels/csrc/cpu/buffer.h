// Scratch memory of a thread: grows to the largest size asked for and stays until the thread ends.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace {

class Buffer {
 public:
  ~Buffer() { std::free(memory_); }

  // At least `bytes` bytes at a multiple of 64. What was in it before is lost.
  char* get(int64_t bytes) {
    if (bytes > size_) {
      std::free(memory_);
      size_ = (bytes + 4095) / 4096 * 4096;
      memory_ = static_cast<char*>(std::aligned_alloc(64, size_));
      if (!memory_) std::abort();
    }
    return memory_;
  }

 private:
  char* memory_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace
