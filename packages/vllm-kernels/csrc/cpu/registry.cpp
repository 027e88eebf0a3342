// The library's exported functions: which level this machine has, the threads to use, kernels by name, and replaying
// recorded calls of them.
#include <cstring>

#include "abi.h"
#include "level.h"
#include "parallel.h"

OpenMP vllm_openmp = {nullptr, nullptr, nullptr};

// One line for each kernel file.
#define VLLM_FOR_EACH_FILE(USE, level) \
  USE(attention, level)                \
  USE(activation, level)               \
  USE(add, level)                      \
  USE(cache, level)                    \
  USE(embedding, level)                \
  USE(limits, level)                   \
  USE(linear, level)                   \
  USE(rotary, level)                   \
  USE(norm, level)                     \
  USE(quantized_linear, level)         \
  USE(quantized_pack, level)           \
  USE(quantized_weight_only, level)    \
  USE(sampling, level)                 \
  USE(sampling_adjust, level)          \
  USE(threads, level)

#define VLLM_DECLARE(file, level) extern "C" const KernelEntry vllm_##file##_##level[];
#define VLLM_LIST(file, level) vllm_##file##_##level,
VLLM_FOR_EACH_FILE(VLLM_DECLARE, avx2)
VLLM_FOR_EACH_FILE(VLLM_DECLARE, avx512)
VLLM_FOR_EACH_FILE(VLLM_DECLARE, avx512_bf16)
VLLM_FOR_EACH_FILE(VLLM_DECLARE, amx)

namespace {

constexpr int kFiles = 0
#define VLLM_COUNT(file, level) +1
    VLLM_FOR_EACH_FILE(VLLM_COUNT, any);

const KernelEntry* const kKernels[4][kFiles] = {
    {VLLM_FOR_EACH_FILE(VLLM_LIST, avx2)},
    {VLLM_FOR_EACH_FILE(VLLM_LIST, avx512)},
    {VLLM_FOR_EACH_FILE(VLLM_LIST, avx512_bf16)},
    {VLLM_FOR_EACH_FILE(VLLM_LIST, amx)},
};

}  // namespace

#define VLLM_EXPORT extern "C" __attribute__((visibility("default")))

// The best level of this machine, -1 if it has none.
VLLM_EXPORT int vllm_cpu_level() { return detect_level(); }

// Entry points of the OpenMP runtime that all kernels share: GOMP_parallel, omp_get_thread_num, omp_get_num_threads.
VLLM_EXPORT void vllm_cpu_use_openmp(void* parallel, void* thread_num, void* num_threads) {
  vllm_openmp.parallel = reinterpret_cast<void (*)(void (*)(void*), void*, unsigned, unsigned)>(parallel);
  vllm_openmp.thread_num = reinterpret_cast<int (*)()>(thread_num);
  vllm_openmp.num_threads = reinterpret_cast<int (*)()>(num_threads);
}

// A kernel for a level; null if there is no such kernel.
VLLM_EXPORT const KernelEntry* vllm_cpu_kernel(const char* name, int level) {
  if (level < kAvx2 || level > kAmx) return nullptr;
  for (const KernelEntry* entries : kKernels[level])
    for (; entries->name; ++entries)
      if (!std::strcmp(entries->name, name)) return entries;
  return nullptr;
}

// Calls kernels one after the other, call i with the arguments from arguments[starts[i]] on. Ends at the first call
// whose result is not 0, which means that it refused its arguments: its number, or -1 after the last.
VLLM_EXPORT int64_t vllm_cpu_replay(const Invoke* calls, const int64_t* starts, const Argument* arguments,
                                    int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    if (calls[i](arguments + starts[i])) return i;
  return -1;
}
