// What the Python side and the kernels agree on. Plain C: pointers, integers, floats.
#pragma once

#include <cstdint>

// Storage types of tensors, as vllm_kernels/cpu/native.py numbers them.
enum class DType : int32_t { f32 = 0, bf16 = 1, f16 = 2, fp8_e4m3 = 3, fp8_e5m2 = 4, i8 = 5 };

// A kernel's name with its function for one level. Each kernel file ends with a list of these:
//   VLLM_KERNELS(norm) = {{"rms_norm", (void*)rms_norm}, ..., VLLM_KERNELS_END};
// and has a line in registry.cpp.
struct KernelEntry {
  const char* name;
  void* function;
};

#define VLLM_JOIN2(a, b, c) a##b##_##c
#define VLLM_JOIN(a, b, c) VLLM_JOIN2(a, b, c)
#define VLLM_KERNELS(file) \
  extern "C" __attribute__((visibility("hidden"))) const KernelEntry VLLM_JOIN(vllm_, file, VLLM_LEVEL)[]; \
  const KernelEntry VLLM_JOIN(vllm_, file, VLLM_LEVEL)[]
#define VLLM_KERNELS_END {nullptr, nullptr}
