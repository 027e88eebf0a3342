// What torch_cuda.py asks for, by ctypes. Part of device.cpp.
#pragma once

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
int64_t sim_num_ooms() { return memory().num_ooms; }
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
