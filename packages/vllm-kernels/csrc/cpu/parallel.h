// Sharing work among the threads of the caller's OpenMP runtime (torch's own), without linking against one: the Python
// side hands over the runtime's entry points, so the process never holds a second pool of threads.
#pragma once

#include <cstdint>

struct OpenMP {
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned);  // GOMP_parallel
  int (*thread_num)();                                           // omp_get_thread_num
  int (*num_threads)();                                          // omp_get_num_threads
};

extern __attribute__((visibility("hidden"))) OpenMP vllm_openmp;  // null pointers: everything runs on the calling thread

namespace {

// Calls body(thread, num_threads) on each thread of a team of at most `threads`; on the calling thread alone for 1.
// `threads` is 1 or the number that the Python side gave, nothing between: GOMP ends the threads that a smaller team
// leaves out and starts new ones for the next team, which takes hundreds of microseconds and forgets their cores.
template <class Body>
void run_team(int threads, const Body& body) {
  if (threads <= 1 || !vllm_openmp.parallel) {
    body(0, 1);
    return;
  }
  vllm_openmp.parallel(
      [](void* data) { (*static_cast<const Body*>(data))(vllm_openmp.thread_num(), vllm_openmp.num_threads()); },
      const_cast<Body*>(&body), static_cast<unsigned>(threads), 0);
}

struct Range {
  int64_t begin, end;
};

// The part of [0, count) that thread `thread` of `num_threads` has when parts are as equal as can be, in order.
inline Range part_of(int64_t count, int thread, int num_threads) {
  return {count * thread / num_threads, count * (thread + 1) / num_threads};
}

// Calls body(i) for every i of [0, count), in contiguous parts. `cost` is about the bytes that one i touches: work too
// small to be worth waking threads for stays on the calling thread.
constexpr int64_t kMinBytesPerThread = 16 * 1024;

template <class Body>
void parallel_for(int64_t count, int64_t cost, int threads, const Body& body) {
  if (count < 2 || count * cost < 2 * kMinBytesPerThread) threads = 1;
  run_team(threads, [&](int thread, int num_threads) {
    const Range range = part_of(count, thread, num_threads);
    for (int64_t i = range.begin; i < range.end; ++i) body(i);
  });
}

}  // namespace
