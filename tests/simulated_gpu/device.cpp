// A GPU for torch that is built without CUDA: tensors of device "cuda" with memory of their own, computed by the CPU.
//
// What is a GPU's here: nothing reads or writes tensors of both devices but copies; a copy that is not waited for
// arrives when it is waited for, and its source in main memory must not change before; what is captured computes
// nothing, and a replay computes it with the addresses and numbers of that time. What is not: streams run in the order
// of the program, and nothing takes the time it would.
#include "memory.h"

#include <vector>

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

namespace simulated {
namespace {

using torch::jit::Stack;

const c10::Device kGpu(c10::DeviceType::CUDA, 0);

DeviceAllocator* device_allocator() {
  static auto* one = new DeviceAllocator;
  return one;
}

PinnedAllocator* pinned_allocator() {
  static auto* one = new PinnedAllocator;
  return one;
}

// ---- what is under way ----

struct Upload {  // a copy from pinned memory that the GPU has not made yet, for all that the program knows
  int64_t position;
  at::Tensor source;
  uint64_t sum;
};

struct Download {  // what will be in pinned memory when it is waited for
  int64_t position;
  at::Tensor target, contents;
};

int64_t position = 0;  // counts what was launched
int waits_are = 0;  // 0: permitted; 1: an error
std::vector<Upload> uploads;
std::vector<Download> downloads;
thread_local int64_t current_stream = 0;

uint64_t sum_of(const at::Tensor& tensor) {
  auto bytes = static_cast<const unsigned char*>(tensor.storage().data());
  uint64_t sum = 1469598103934665603ull;
  size_t size = tensor.storage().nbytes();
  for (size_t i = 0; i < size; i++) sum = (sum ^ bytes[i]) * 1099511628211ull;
  return sum;
}

void check_not_capturing(const char* what) {
  TORCH_CHECK(!memory().captures(), "CUDA error: operation not permitted when stream is capturing (", what, ")");
}

// Waits for all that was launched up to a position. Raises when a source was written to before its copy was made.
void wait_until(int64_t until) {
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

void wait_for_all(const char* what) {
  check_not_capturing(what);
  TORCH_CHECK(waits_are == 0, "called a synchronizing CUDA operation: ", what);
  wait_until(position);
}

// ---- tensors of the GPU, seen by the CPU ----

at::Tensor on_cpu(const at::Tensor& tensor) {
  auto options = tensor.options().device(at::kCPU).requires_grad(false);
  if (!tensor.numel()) return at::empty_strided(tensor.sizes(), tensor.strides(), options);
  return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), options);
}

at::Tensor empty_like_on_gpu(const at::Tensor& tensor) {
  return at::empty_strided(tensor.sizes(), tensor.strides(), tensor.options().device(kGpu));
}

// The same memory without a claim to it. A number of main memory is taken with the launch.
at::Tensor borrowed(const at::Tensor& tensor) {
  if (!tensor.is_cuda()) return tensor.dim() ? tensor : tensor.clone();
  if (!tensor.numel()) return tensor;
  return at::for_blob(tensor.data_ptr(), tensor.sizes())
      .strides(tensor.strides())
      .options(tensor.options())
      .target_device(tensor.device())
      .make_tensor();
}

size_t span_of(const at::Tensor& tensor) {
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

// ---- capture ----

struct Recorded {
  c10::OperatorHandle op;
  Stack arguments;  // tensors are borrowed
  Stack results;
};

struct Graph {
  int64_t pool;
  std::vector<Recorded> calls;
};

std::vector<Graph*> graphs;
int64_t underway = -1;  // the graph that is being captured
bool is_spoilt = false;

bool writes(const c10::Argument& argument) { return argument.alias_info() && argument.alias_info()->isWrite(); }

void check_places(const c10::OperatorHandle& op, const Stack& arguments) {
  for (c10::IValue value : arguments)
    each_tensor(value, [&](const at::Tensor& tensor) {
      TORCH_CHECK(
          tensor.is_cuda() || !tensor.dim(), "Expected all tensors to be on the same device, but found one of ",
          tensor.device(), " (", op.schema().name(), ")");
      return tensor;
    });
}

// Operators of which a GPU's kernels wait for the GPU, as results or their shapes depend on values.
bool waits(const c10::OperatorHandle& op, const Stack& arguments) {
  static const std::vector<std::string> names = {
      "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::_unique2",
      "aten::unique_dim", "aten::unique_consecutive", "aten::bincount", "aten::is_nonzero"};
  const std::string& name = op.schema().name();
  if (std::find(names.begin(), names.end(), name) != names.end()) return true;
  if (name == "aten::repeat_interleave" && arguments.size() == 2) return true;  // without output_size
  bool masked = false;
  if (name == "aten::index" || name == "aten::index_put_" || name == "aten::_index_put_impl_")
    for (const std::optional<at::Tensor>& index : c10::IValue(arguments[1]).toOptionalTensorList())
      masked |= index && (index->scalar_type() == at::kBool || index->scalar_type() == at::kByte || !index->is_cuda());
  return masked;
}

void compute(const c10::OperatorHandle& op, Stack& stack);

// Note a call down for replays; its results have memory, and nothing in it.
void record(const c10::OperatorHandle& op, Stack& stack) {
  const auto& schema = op.schema();
  size_t count = schema.arguments().size();
  Stack arguments(stack.end() - count, stack.end());
  Stack results;
  bool in_place = false;
  for (const auto& argument : schema.arguments()) in_place |= writes(argument);
  bool to_out = false;
  for (const auto& argument : schema.arguments()) to_out |= argument.kwarg_only() && writes(argument);
  Stack shapes = arguments;  // of zeros: what is captured is not computed
  if (!in_place || to_out) {
    for (auto& value : shapes) {
      each_tensor(value, [](const at::Tensor& tensor) {
        if (!tensor.is_cuda()) return tensor;
        return at::empty_strided(tensor.sizes(), tensor.strides(), tensor.options().device(at::kCPU)).zero_();
      });
      if (value.isDevice() && value.toDevice().is_cuda()) value = c10::Device(at::kCPU);
    }
    op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &shapes);
  }
  if (in_place) {
    for (const auto& result : schema.returns())
      for (size_t i = 0; i < count; i++)
        if (result.alias_info() && schema.arguments()[i].alias_info() &&
            *result.alias_info() == *schema.arguments()[i].alias_info())
          results.push_back(arguments[i]);
    TORCH_CHECK(results.size() == schema.returns().size(), "cannot capture ", schema.name());
    for (size_t i = 0; to_out && i < results.size(); i++)
      if (results[i].isTensor() && results[i].toTensor().sizes() != shapes[i].toTensor().sizes())
        results[i].toTensor().resize_(shapes[i].toTensor().sizes());
  } else {
    results = shapes;
    for (auto& value : results) each_tensor(value, empty_like_on_gpu);
  }
  Recorded call{op, arguments, results};
  for (auto& value : call.arguments) each_tensor(value, borrowed);
  for (auto& value : call.results) each_tensor(value, borrowed);
  graphs[underway]->calls.push_back(std::move(call));
  stack.erase(stack.end() - count, stack.end());
  for (auto& value : results) stack.push_back(value);
}

void check_memory(const c10::OperatorHandle& op, const Stack& values) {
  for (c10::IValue value : values)
    each_tensor(value, [&](const at::Tensor& tensor) {
      if (tensor.is_cuda() && tensor.numel())
        TORCH_CHECK(
            memory().is_anybodys(tensor.data_ptr(), span_of(tensor)), "CUDA error: an illegal memory access (a graph's ",
            op.schema().name(), " knows memory that was given back)");
      return tensor;
    });
}

void replay(const Recorded& call) {
  check_memory(call.op, call.arguments);
  check_memory(call.op, call.results);
  Stack stack = call.arguments;
  if (call.op.schema().name() == "aten::copy_") {
    at::Tensor target = stack[0].toTensor();
    target.copy_(stack[1].toTensor(), stack[2].toBool());
    return;
  }
  compute(call.op, stack);
  for (size_t i = 0; i < stack.size(); i++) {
    std::vector<at::Tensor> from, to;
    auto list = [](std::vector<at::Tensor>& all) {
      return [&all](const at::Tensor& tensor) { return all.push_back(tensor), tensor; };
    };
    c10::IValue result = stack[i], place = call.results[i];
    each_tensor(result, list(from));
    each_tensor(place, list(to));
    for (size_t j = 0; j < from.size(); j++)
      if (from[j].numel() && from[j].data_ptr() != to[j].data_ptr()) on_cpu(to[j]).copy_(on_cpu(from[j]));
  }
}

// ---- operators ----

// Compute by the CPU's kernel on the GPU's memory. Replaces the arguments on the stack by the results.
void compute(const c10::OperatorHandle& op, Stack& stack) {
  const auto& schema = op.schema();
  size_t count = schema.arguments().size();
  Stack arguments(stack.end() - count, stack.end());
  Stack seen = arguments;
  for (auto& value : seen) {
    each_tensor(value, [](const at::Tensor& tensor) { return tensor.is_cuda() ? on_cpu(tensor) : tensor; });
    if (value.isDevice() && value.toDevice().is_cuda()) value = c10::Device(at::kCPU);
  }
  Stack results = seen;
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &results);
  bool gives_to_host = schema.name() == "aten::equal" || schema.name() == "aten::_local_scalar_dense";
  for (size_t r = 0; r < results.size(); r++) {
    const auto* alias = schema.returns()[r].alias_info();
    bool done = false;
    if (alias && alias->isWrite())
      for (size_t i = 0; i < count && !done; i++) {
        const auto* other = schema.arguments()[i].alias_info();
        if (!other || !(*other == *alias)) continue;
        if (results[r].isTensor()) {
          at::Tensor target = arguments[i].toTensor(), computed = results[r].toTensor();
          if (target.sizes() != computed.sizes()) {
            target.resize_(computed.sizes());
            on_cpu(target).copy_(computed);
          }
        }
        results[r] = arguments[i];
        done = true;
      }
    if (done || gives_to_host) continue;
    each_tensor(results[r], [&](const at::Tensor& tensor) -> at::Tensor {
      for (size_t i = 0; alias && i < count; i++)
        if (arguments[i].isTensor() && arguments[i].toTensor().is_cuda()) {
          const at::Tensor& whole = arguments[i].toTensor();
          auto start = static_cast<char*>(whole.data_ptr()), view = static_cast<char*>(tensor.data_ptr());
          if (tensor.numel() && whole.dtype() == tensor.dtype() && view >= start && view < start + span_of(whole))
            return whole.as_strided(
                tensor.sizes(), tensor.strides(), whole.storage_offset() + (view - start) / whole.itemsize());
        }
      at::Tensor result = empty_like_on_gpu(tensor);
      on_cpu(result).copy_(tensor);
      return result;
    });
  }
  stack.erase(stack.end() - count, stack.end());
  for (auto& value : results) stack.push_back(value);
}

void any_operator(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  size_t count = op.schema().arguments().size();
  Stack arguments(stack->end() - count, stack->end());
  bool is_captured = memory().captures();
  try {
    bool waiting = waits(op, arguments);
    if (!waiting) check_places(op, arguments);
    if (waiting) wait_for_all(op.schema().name().c_str());
    position++;
    if (is_captured)
      record(op, *stack);
    else
      compute(op, *stack);
  } catch (...) {
    is_spoilt |= is_captured;
    throw;
  }
}

at::Tensor& copy_(at::Tensor& self, const at::Tensor& source, bool non_blocking) {
  if (self.is_same(source) || !self.numel()) return self;
  position++;
  bool is_captured = memory().captures();
  bool up = !source.is_cuda(), down = !self.is_cuda();
  const at::Tensor& host = up ? source : self;
  bool is_pinned = (up || down) && PinnedAllocator::is_pinned(host.data_ptr());
  bool waiting = (up || down) && !(non_blocking && is_pinned);
  if (waiting) {
    is_spoilt |= is_captured;
    check_not_capturing("a copy to or from memory that is not pinned, or that is waited for");
    TORCH_CHECK(non_blocking || waits_are == 0, "called a synchronizing CUDA operation: copy_");
    wait_for_all("copy_");
  }
  if (is_captured) {
    static auto op = c10::Dispatcher::singleton().findSchemaOrThrow("aten::copy_", "");
    graphs[underway]->calls.push_back({op, {borrowed(self), borrowed(source), non_blocking}, {}});
    return self;
  }
  at::Tensor from = source.is_cuda() ? on_cpu(source) : source;
  if (down && !waiting) {
    at::Tensor contents = at::empty_like(self, self.options().pinned_memory(false));
    contents.copy_(from);
    if (self.is_contiguous()) std::memset(self.data_ptr(), 0xFF, self.nbytes());
    Guard guard(lock());
    downloads.push_back({position, self, contents});
    return self;
  }
  (down ? self : on_cpu(self)).copy_(from);
  if (up && !waiting) {
    Guard guard(lock());
    uploads.push_back({position, source, sum_of(source)});
  }
  return self;
}

at::Tensor copy_from(const at::Tensor& self, const at::Tensor& target, bool non_blocking) {
  at::Tensor to = target;
  return copy_(to, self, non_blocking);
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

struct Hooks final : at::CUDAHooksInterface {
  explicit Hooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex current_device() const override { return 0; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  int getNumGPUs() const override { return 1; }
  c10::Device getDeviceFromPtr(void* data) const override {
    Guard guard(lock());
    return memory().is_anybodys(data, 1) ? kGpu : c10::Device(at::kCPU);
  }
  bool isPinnedPtr(const void* data) const override { return PinnedAllocator::is_pinned(data); }
  c10::Allocator* getPinnedMemoryAllocator() const override { return pinned_allocator(); }
  c10::Allocator* getCUDADeviceAllocator() const override { return device_allocator(); }
};

}  // namespace
}  // namespace simulated

namespace at {
using SimulatedHooks = simulated::Hooks;
REGISTER_CUDA_HOOKS(SimulatedHooks)
}  // namespace at

namespace simulated {
namespace {

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

// ---- what tests/simulated_gpu/torch_cuda.py asks for, by ctypes ----

using namespace simulated;

namespace {
thread_local std::string message;

template <typename F>
int told(F&& function) {
  try {
    function();
    return 0;
  } catch (const c10::Error& error) {
    message = error.what_without_backtrace();
    return 1;
  } catch (const std::exception& error) {
    message = error.what();
    return 1;
  }
}
}  // namespace

extern "C" {

const char* sim_message() { return message.c_str(); }
int sim_synchronize(const char* what) {
  return told([&] { wait_for_all(what); });
}
int sim_wait_until(int64_t until) {
  return told([&] {
    check_not_capturing("waiting for an event");
    wait_until(until);
  });
}
int64_t sim_position() { return position; }
void sim_forbid_waits(int forbidden) { waits_are = forbidden; }
void sim_set_stream(int64_t stream) { current_stream = stream; }
void sim_set_total(int64_t total) { memory().total = total; }
int64_t sim_total() { return memory().total; }
int64_t sim_free() { return memory().total - memory().context - memory().reserved; }
int64_t sim_reserved() { return memory().reserved; }
int64_t sim_peak() { return memory().peak; }
int64_t sim_allocated() { return memory().allocated; }
void sim_forget_peak() { memory().peak = memory().reserved; }
int sim_empty_cache() {
  return told([] {
    check_not_capturing("emptying the cache");
    Guard guard(lock());
    memory().empty_cache();
  });
}
int64_t sim_new_pool() {
  Guard guard(lock());
  int64_t number = ++memory().next_pool;
  memory().pools[number];
  return number;
}
int sim_resize(c10::StorageImpl* storage, int64_t size) {
  return told([&] { resize(storage, size); });
}
int sim_is_capturing() { return memory().captures(); }
int64_t sim_capture_begin(int64_t pool) {
  Guard guard(lock());
  if (underway >= 0 || current_stream == 0) return -1;
  memory().pools[pool].graphs++;
  graphs.push_back(new Graph{pool, {}});
  memory().capturing_pool = pool;
  memory().capturing_thread = std::this_thread::get_id();
  return underway = static_cast<int64_t>(graphs.size()) - 1;
}
// 0: well; 1: nothing is captured; 2: something that was not permitted ended it
int sim_capture_end() {
  Guard guard(lock());
  if (underway < 0) return 1;
  underway = -1;
  memory().capturing_pool = 0;
  return std::exchange(is_spoilt, false) ? 2 : 0;
}
void sim_spoil() { is_spoilt |= memory().captures(); }
int64_t sim_num_calls(int64_t graph) { return static_cast<int64_t>(graphs[graph]->calls.size()); }
int sim_replay(int64_t graph, int64_t begin, int64_t end) {
  return told([&] {
    position++;
    for (int64_t i = begin; i < end; i++) replay(graphs[graph]->calls[i]);
  });
}
int sim_owns(const void* start, int64_t size) {
  Guard guard(lock());
  return memory().is_anybodys(start, size);
}
void sim_drop(int64_t graph) {
  Guard guard(lock());
  graphs[graph]->calls.clear();
  int64_t pool = graphs[graph]->pool;
  memory().pools[pool].graphs--;
  memory().drop_if_unused(pool);
}
}
