// Operators on the GPU: computed by the CPU's kernels, or noted down while something is captured.
#pragma once

#include "transfers.h"
#include "views.h"

#include <torch/library.h>

namespace simulated {

using torch::jit::Stack;

struct Recorded {
  c10::OperatorHandle op;
  Stack arguments;  // tensors are borrowed
  Stack results;
};

struct Graph {
  int64_t pool;
  std::vector<Recorded> calls;
};

inline std::vector<Graph*> graphs;
inline int64_t underway = -1;  // the graph that is being captured
inline bool is_spoilt = false;

inline bool writes(const c10::Argument& argument) { return argument.alias_info() && argument.alias_info()->isWrite(); }

inline void check_places(const c10::OperatorHandle& op, const Stack& arguments) {
  for (c10::IValue value : arguments)
    each_tensor(value, [&](const at::Tensor& tensor) {
      TORCH_CHECK(
          tensor.is_cuda() || !tensor.dim(), "Expected all tensors to be on the same device, but found one of ",
          tensor.device(), " (", op.schema().name(), ")");
      return tensor;
    });
}

// Operators of which a GPU's kernels wait for the GPU, as results or their shapes depend on values.
inline bool waits(const c10::OperatorHandle& op, const Stack& arguments) {
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

inline void compute(const c10::OperatorHandle& op, Stack& stack);

// Note a call down for replays; its results have memory, and nothing in it.
inline void record(const c10::OperatorHandle& op, Stack& stack) {
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

inline void check_memory(const c10::OperatorHandle& op, const Stack& values) {
  for (c10::IValue value : values)
    each_tensor(value, [&](const at::Tensor& tensor) {
      if (tensor.is_cuda() && tensor.numel())
        TORCH_CHECK(
            memory().is_anybodys(tensor.data_ptr(), span_of(tensor)), "CUDA error: an illegal memory access (a graph's ",
            op.schema().name(), " knows memory that was given back)");
      return tensor;
    });
}

inline void replay(const Recorded& call) {
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

// Compute by the CPU's kernel on the GPU's memory. Replaces the arguments on the stack by the results.
inline void compute(const c10::OperatorHandle& op, Stack& stack) {
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

inline void any_operator(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
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

inline at::Tensor& copy_(at::Tensor& self, const at::Tensor& source, bool non_blocking) {
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

inline at::Tensor copy_from(const at::Tensor& self, const at::Tensor& target, bool non_blocking) {
  at::Tensor to = target;
  return copy_(to, self, non_blocking);
}

}  // namespace simulated
