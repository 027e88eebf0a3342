// Tensors of the GPU as the CPU sees them, and as a graph knows them.
#pragma once

#include <vector>

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/ivalue.h>

namespace simulated {

inline const c10::Device kGpu(c10::DeviceType::CUDA, 0);

inline at::Tensor on_cpu(const at::Tensor& tensor) {
  auto options = tensor.options().device(at::kCPU).requires_grad(false);
  if (!tensor.numel()) return at::empty_strided(tensor.sizes(), tensor.strides(), options);
  return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), options);
}

inline at::Tensor empty_like_on_gpu(const at::Tensor& tensor) {
  return at::empty_strided(tensor.sizes(), tensor.strides(), tensor.options().device(kGpu));
}

// The same memory without a claim to it. A number of main memory is taken with the launch.
inline at::Tensor borrowed(const at::Tensor& tensor) {
  if (!tensor.is_cuda()) return tensor.dim() ? tensor : tensor.clone();
  if (!tensor.numel()) return tensor;
  return at::for_blob(tensor.data_ptr(), tensor.sizes())
      .strides(tensor.strides())
      .options(tensor.options())
      .target_device(tensor.device())
      .make_tensor();
}

inline size_t span_of(const at::Tensor& tensor) {
  return at::detail::computeStorageNbytes(tensor.sizes(), tensor.strides(), tensor.itemsize());
}

template <typename F>
void each_tensor(c10::IValue& value, F&& change) {
  if (value.isTensor()) {
    if (value.toTensor().defined()) value = change(value.toTensor());
  } else if (value.isTensorList()) {
    std::vector<at::Tensor> all;
    for (const at::Tensor& one : value.toTensorVector()) all.push_back(one.defined() ? change(one) : one);
    value = c10::IValue(std::move(all));
  } else if (value.isOptionalTensorList()) {
    c10::List<std::optional<at::Tensor>> all;
    for (const std::optional<at::Tensor>& one : value.toOptionalTensorList())
      all.push_back(one && one->defined() ? std::optional<at::Tensor>(change(*one)) : one);
    value = c10::IValue(std::move(all));
  }
}

}  // namespace simulated
