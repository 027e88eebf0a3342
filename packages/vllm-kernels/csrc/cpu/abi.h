// What the Python side and the kernels agree on. Plain C: pointers, integers, floats.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

// Storage types of tensors, as vllm_kernels/cpu/native.py numbers them.
enum class DType : int32_t { f32 = 0, bf16 = 1, f16 = 2, fp8_e4m3 = 3, fp8_e5m2 = 4, i8 = 5 };

// An argument of a recorded call: `real` for float and double parameters, `integer` for all others (pointers, too).
union Argument {
  int64_t integer;
  double real;
};

// Calls a kernel with recorded arguments. The result is the kernel's own; 0 of a kernel without one.
using Invoke = int64_t (*)(const Argument* arguments);

// A kernel's name with its function for one level, as Python calls it and as a recording does. Each kernel file ends
// with a list of these:
//   VLLM_KERNELS(norm) = {VLLM_KERNEL(rms_norm), ..., VLLM_KERNELS_END};
// and has a line in registry.cpp.
struct KernelEntry {
  const char* name;
  void* function;
  Invoke invoke;
};

namespace {

template <class Parameter>
Parameter argument_as(Argument argument) {
  if constexpr (std::is_pointer_v<Parameter>)
    return reinterpret_cast<Parameter>(argument.integer);
  else if constexpr (std::is_floating_point_v<Parameter>)
    return static_cast<Parameter>(argument.real);
  else
    return static_cast<Parameter>(argument.integer);
}

template <class Result, class... Parameters, std::size_t... places>
int64_t invoke_with(Result (*function)(Parameters...), const Argument* arguments, std::index_sequence<places...>) {
  if constexpr (std::is_void_v<Result>) {
    function(argument_as<Parameters>(arguments[places])...);
    return 0;
  } else {
    return static_cast<int64_t>(function(argument_as<Parameters>(arguments[places])...));
  }
}

template <class Result, class... Parameters>
constexpr std::size_t parameter_count(Result (*)(Parameters...)) {
  return sizeof...(Parameters);
}

template <auto function>
int64_t invoke(const Argument* arguments) {
  return invoke_with(function, arguments, std::make_index_sequence<parameter_count(function)>());
}

}  // namespace

#define VLLM_JOIN2(a, b, c) a##b##_##c
#define VLLM_JOIN(a, b, c) VLLM_JOIN2(a, b, c)
#define VLLM_KERNELS(file) \
  extern "C" __attribute__((visibility("hidden"))) const KernelEntry VLLM_JOIN(vllm_, file, VLLM_LEVEL)[]; \
  const KernelEntry VLLM_JOIN(vllm_, file, VLLM_LEVEL)[]
#define VLLM_KERNEL(name) {#name, reinterpret_cast<void*>(name), invoke<name>}
#define VLLM_KERNELS_END {nullptr, nullptr, nullptr}
