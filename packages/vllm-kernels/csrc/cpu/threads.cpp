// Which threads of the system compute: the Python side binds them to cores by their ids.
#include <sys/syscall.h>
#include <unistd.h>

#include "abi.h"
#include "parallel.h"

namespace {

// Writes the id of each thread of a team of `threads` to ids[0 .. threads), 0 where the runtime gave fewer. The runtime
// keeps a team's threads for later teams of the same size that the same thread starts, so what is bound stays bound.
void team_thread_ids(int32_t* ids, int32_t threads) {
  for (int32_t i = 0; i < threads; ++i) ids[i] = 0;
  run_team(threads, [&](int thread, int) { ids[thread] = static_cast<int32_t>(syscall(SYS_gettid)); });
}

}  // namespace

VLLM_KERNELS(threads) = {VLLM_KERNEL(team_thread_ids), VLLM_KERNELS_END};
