// A GPU for torch that is built without CUDA: tensors of device "cuda" with memory of their own, computed by the CPU.
//
// What is a GPU's here: nothing reads or writes tensors of both devices but copies; a copy that is not waited for
// arrives when it is waited for, and its source in main memory must not change before; what is captured computes
// nothing, and a replay computes it with the addresses and numbers of that time. What is not: streams run in the order
// of the program, and nothing takes the time it would.
#include "operators.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

namespace simulated {
namespace {

DeviceAllocator* device_allocator() {
  static auto* one = new DeviceAllocator;
  return one;
}

PinnedAllocator* pinned_allocator() {
  static auto* one = new PinnedAllocator;
  return one;
}

at::Tensor empty(
    at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
    std::optional<at::Device>, std::optional<bool> pinned, std::optional<at::MemoryFormat> format) {
  TORCH_CHECK(!pinned.value_or(false), "Only dense CPU tensors can be pinned");
  return at::detail::empty_generic(
      size, device_allocator(), c10::DispatchKeySet(c10::DispatchKey::CUDA), at::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(
    at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
    std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(
      size, stride, device_allocator(), c10::DispatchKeySet(c10::DispatchKey::CUDA), at::dtype_or_default(dtype));
}

// Of main memory: torch without CUDA knows of no device that memory could be pinned for.
at::Tensor empty_on_host(
    at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout> layout,
    std::optional<at::Device> device, std::optional<bool> pinned, std::optional<at::MemoryFormat> format) {
  if (!pinned.value_or(false)) return at::detail::empty_cpu(size, dtype, layout, device, false, format);
  return at::detail::empty_generic(
      size, pinned_allocator(), c10::DispatchKeySet(c10::DispatchKey::CPU), at::dtype_or_default(dtype), format);
}

at::Tensor empty_strided_on_host(
    at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype,
    std::optional<at::Layout> layout, std::optional<at::Device> device, std::optional<bool> pinned) {
  if (!pinned.value_or(false)) return at::detail::empty_strided_cpu(size, stride, dtype, layout, device, false);
  return at::detail::empty_strided_generic(
      size, stride, pinned_allocator(), c10::DispatchKeySet(c10::DispatchKey::CPU), at::dtype_or_default(dtype));
}

bool is_pinned(const at::Tensor& self, std::optional<at::Device>) { return PinnedAllocator::is_pinned(self.data_ptr()); }

at::Tensor pin(const at::Tensor& self, std::optional<at::Device>) {
  at::Tensor result = empty_strided_on_host(self.sizes(), self.strides(), self.scalar_type(), {}, {}, true);
  return result.copy_(self);
}

void resize(at::StorageImpl* storage, size_t size) {
  at::DataPtr data = device_allocator()->allocate(size);
  if (size_t kept = std::min(size, storage->nbytes())) std::memcpy(data.mutable_get(), storage->data(), kept);
  storage->set_data_ptr_noswap(std::move(data));
  storage->set_nbytes(size);
}

const at::Tensor& resize_(const at::Tensor& self, at::IntArrayRef size, std::optional<at::MemoryFormat>) {
  auto* tensor = self.unsafeGetTensorImpl();
  tensor->set_sizes_contiguous(size);
  size_t needed = (tensor->numel() + tensor->storage_offset()) * tensor->itemsize();
  auto* storage = tensor->unsafe_storage().unsafeGetStorageImpl();
  if (needed > storage->nbytes()) resize(storage, needed);
  return self;
}

at::Tensor& set_storage(
    at::Tensor& self, at::Storage storage, int64_t offset, at::IntArrayRef size, at::IntArrayRef stride) {
  auto* tensor = self.unsafeGetTensorImpl();
  tensor->set_storage_keep_dtype(storage);
  if (stride.data() == nullptr || (stride.empty() && !size.empty()))
    tensor->set_sizes_contiguous(size);
  else
    tensor->set_sizes_and_strides(size, stride);
  tensor->set_storage_offset(offset);
  return self;
}

at::Tensor& set_whole_storage(at::Tensor& self, at::Storage storage) {
  return set_storage(self, storage, 0, {static_cast<int64_t>(storage.nbytes() / self.itemsize())}, {});
}

at::Tensor& set_tensor(at::Tensor& self, const at::Tensor& source) {
  return set_storage(self, source.storage(), source.storage_offset(), source.sizes(), source.strides());
}

// ---- the device ----

struct DeviceGuard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return c10::DeviceType::CUDA; }
  c10::Device exchangeDevice(c10::Device) const override { return kGpu; }
  c10::Device getDevice() const override { return kGpu; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const noexcept override {
    return c10::Stream(c10::Stream::UNSAFE, kGpu, current_stream);
  }
  c10::Stream getNewStream(c10::Device device, int) const override { return getStream(device); }
  c10::Stream exchangeStream(c10::Stream stream) const noexcept override {
    return c10::Stream(c10::Stream::UNSAFE, kGpu, std::exchange(current_stream, stream.id()));
  }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  bool isStreamCapturing(const c10::Stream&) const override { return memory().captures(); }
  void synchronizeDevice(const c10::DeviceIndex) const override { wait_for_all("synchronize"); }
};

C10_REGISTER_GUARD_IMPL(CUDA, DeviceGuard)
c10::AllocatorRegisterer<c10::DeviceType::CUDA> registered(device_allocator());

TORCH_LIBRARY(simulated_gpu, m) {
  m.def("on_cpu(Tensor tensor) -> Tensor", &on_cpu);
  m.def("bytes_at(int address, int size) -> Tensor", [](int64_t address, int64_t size) {
    return at::for_blob(reinterpret_cast<void*>(address), {size})
        .options(at::TensorOptions(at::kByte).device(kGpu))
        .target_device(kGpu)
        .make_tensor();
  });
}

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&any_operator>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("as_strided", at::native::as_strided_tensorimpl);
  m.impl("view", static_cast<at::Tensor (*)(const at::Tensor&, at::IntArrayRef)>(at::native::view));
  m.impl("_reshape_alias", at::native::_reshape_alias);
  m.impl("unfold", at::native::unfold);
  m.impl("view_as_real", at::native::view_as_real);
  m.impl("resize_", resize_);
  m.impl("set_.source_Storage_storage_offset", set_storage);
  m.impl("set_.source_Storage", set_whole_storage);
  m.impl("set_.source_Tensor", set_tensor);
  m.impl("copy_", copy_);
  m.impl("_copy_from", copy_from);
}

TORCH_LIBRARY_IMPL(aten, CPU, m) {
  m.impl("empty.memory_format", empty_on_host);
  m.impl("empty_strided", empty_strided_on_host);
  m.impl("is_pinned", is_pinned);
  m.impl("_pin_memory", pin);
}

}  // namespace
}  // namespace simulated

#include "exports.h"
