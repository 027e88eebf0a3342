// Memory of the GPU that is simulated: main memory, with the books of torch's caching allocator.
//
// Blocks are full of 0xFF (NaN, -1) when they are given out and when they come back: who reads what nobody wrote, or what
// is no longer theirs, computes nonsense. Between the beginning and the end of a capture, the thread that captures takes
// memory from its pool: what it lets go of is taken again by the same capture, and by those after it.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>
#include <thread>

#include <c10/core/Allocator.h>
#include <c10/util/Exception.h>

namespace simulated {

constexpr size_t kGranule = 512;
constexpr size_t kArena = size_t(2) << 20;   // what a pool takes at once, at least
constexpr size_t kPoisoned = size_t(1) << 20;  // of large blocks, only so much at either end

inline std::recursive_mutex& lock() {
  static auto* mutex = new std::recursive_mutex;
  return *mutex;
}
using Guard = std::lock_guard<std::recursive_mutex>;

inline void poison(void* memory, size_t size) {
  if (size <= 2 * kPoisoned) {
    std::memset(memory, 0xFF, size);
    return;
  }
  std::memset(memory, 0xFF, kPoisoned);
  std::memset(static_cast<char*>(memory) + size - kPoisoned, 0xFF, kPoisoned);
}

inline char* map_pages(size_t size) {
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  TORCH_CHECK(memory != MAP_FAILED, "the machine has no memory for the GPU that is simulated");
  return static_cast<char*>(memory);
}

struct Pool {
  std::map<char*, size_t> arenas;
  std::map<char*, size_t> free;  // merged with its neighbours
  int64_t live = 0;              // blocks in use
  int64_t graphs = 0;            // that were captured with it, or are being captured

  char* take(size_t size) {
    for (auto it = free.begin(); it != free.end(); ++it) {
      if (it->second < size) continue;
      char* memory = it->first;
      size_t rest = it->second - size;
      free.erase(it);
      if (rest) free[memory + size] = rest;
      return memory;
    }
    return nullptr;
  }

  void give(char* memory, size_t size) {
    auto [it, _] = free.emplace(memory, size);
    auto next = std::next(it);
    if (next != free.end() && memory + size == next->first && arenas.count(next->first) == 0) {
      it->second += next->second;
      free.erase(next);
    }
    if (it != free.begin() && arenas.count(memory) == 0) {
      auto before = std::prev(it);
      if (before->first + before->second == memory) {
        before->second += it->second;
        free.erase(it);
      }
    }
  }
};

struct Block {
  size_t size;
  int64_t pool;  // -1: none
};

struct Memory {
  int64_t total = int64_t(1) << 30;
  int64_t context = 8 << 20;  // what CUDA itself takes
  int64_t reserved = 0, peak = 0, allocated = 0, num_ooms = 0;
  std::map<char*, Block> blocks;        // in use
  std::multimap<size_t, char*> cached;  // large ones, which torch keeps
  std::map<int64_t, Pool> pools;        // 0: of small blocks, outside of captures
  int64_t next_pool = 0, capturing_pool = 0;
  std::thread::id capturing_thread;

  bool captures() const { return capturing_pool != 0 && std::this_thread::get_id() == capturing_thread; }

  void reserve(size_t size) {
    if (reserved + context + int64_t(size) > total) empty_cache();
    if (reserved + context + int64_t(size) > total) num_ooms++;
    TORCH_CHECK_WITH(
        OutOfMemoryError, reserved + context + int64_t(size) <= total, "the simulated GPU is out of memory: ", size,
        " bytes more than ", reserved, " of ", total);
    reserved += size;
    peak = std::max(peak, reserved);
  }

  char* from_pool(int64_t number, size_t size) {
    Pool& pool = pools[number];
    char* memory = pool.take(size);
    if (!memory) {
      size_t arena = (size + kArena - 1) / kArena * kArena;
      reserve(arena);
      char* start = map_pages(arena);
      pool.arenas[start] = arena;
      pool.give(start, arena);
      memory = pool.take(size);
    }
    pool.live++;
    blocks[memory] = {size, number};
    return memory;
  }

  char* large(size_t size) {
    auto it = cached.lower_bound(size);
    char* memory;
    if (it != cached.end() && it->first <= size + size / 4) {
      memory = it->second, size = it->first;
      cached.erase(it);
    } else {
      reserve(size);
      memory = map_pages(size);
    }
    blocks[memory] = {size, -1};
    return memory;
  }

  char* allocate(size_t wanted) {
    size_t size = (wanted + kGranule - 1) / kGranule * kGranule;
    char* memory;
    if (captures()) {
      memory = from_pool(capturing_pool, size);
    } else {
      memory = size <= kArena / 2 ? from_pool(0, size) : large((size + kArena - 1) / kArena * kArena);
      poison(memory, size);
    }
    allocated += blocks[memory].size;
    return memory;
  }

  void release(char* memory) {
    auto it = blocks.find(memory);
    if (it == blocks.end()) return;
    auto [size, number] = it->second;
    blocks.erase(it);
    allocated -= size;
    if (number <= 0) poison(memory, size);
    if (number < 0) {
      cached.emplace(size, memory);
      return;
    }
    Pool& pool = pools[number];
    pool.live--;
    pool.give(memory, size);
    if (number) drop_if_unused(number);
  }

  void drop_if_unused(int64_t number) {
    Pool& pool = pools[number];
    if (pool.live || pool.graphs) return;
    give_back(pool);
    pools.erase(number);
  }

  void give_back(Pool& pool) {
    for (auto it = pool.arenas.begin(); it != pool.arenas.end();) {
      auto [start, size] = *it;
      auto whole = pool.free.find(start);
      if (whole == pool.free.end() || whole->second < size) {
        ++it;
        continue;
      }
      pool.free.erase(whole);
      munmap(start, size);
      reserved -= size;
      it = pool.arenas.erase(it);
    }
  }

  void empty_cache() {
    for (auto [size, memory] : cached) {
      munmap(memory, size);
      reserved -= size;
    }
    cached.clear();
    give_back(pools[0]);
  }

  // Whether all of it belongs to somebody: a block in use, or a pool that a graph may write into.
  bool is_anybodys(const void* start, size_t size) const {
    if (!size) return true;
    auto memory = static_cast<char*>(const_cast<void*>(start));
    auto it = blocks.upper_bound(memory);
    if (it != blocks.begin()) {
      --it;
      if (memory + size <= it->first + it->second.size) return true;
    }
    for (auto& [number, pool] : pools)
      for (auto [arena, extent] : pool.arenas)
        if (number && memory >= arena && memory + size <= arena + extent) return true;
    return false;
  }
};

inline Memory& memory() {
  static auto* one = new Memory;
  return *one;
}

struct DeviceAllocator final : c10::Allocator {
  static void give_back(void* memory_) {
    Guard guard(lock());
    memory().release(static_cast<char*>(memory_));
  }
  c10::DataPtr allocate(size_t size) override {
    Guard guard(lock());
    c10::Device device(c10::DeviceType::CUDA, 0);
    if (!size) return {nullptr, nullptr, &give_back, device};
    void* start = memory().allocate(size);
    return {start, start, &give_back, device};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }
  void copy_data(void* to, const void* from, std::size_t count) const override { default_copy_data(to, from, count); }
};

// Page-locked main memory: ordinary memory that is known to be it.
struct PinnedAllocator final : c10::Allocator {
  static std::map<char*, size_t>& ranges() {
    static auto* map = new std::map<char*, size_t>;
    return *map;
  }
  static bool is_pinned(const void* memory_) {
    Guard guard(lock());
    auto start = static_cast<char*>(const_cast<void*>(memory_));
    auto it = ranges().upper_bound(start);
    return it != ranges().begin() && start < std::prev(it)->first + std::prev(it)->second;
  }
  static void give_back(void* memory_) {
    Guard guard(lock());
    ranges().erase(static_cast<char*>(memory_));
    std::free(memory_);
  }
  c10::DataPtr allocate(size_t size) override {
    Guard guard(lock());
    c10::Device device(c10::DeviceType::CPU);
    if (!size) return {nullptr, nullptr, &give_back, device};
    size_t whole = (size + kGranule - 1) / kGranule * kGranule;
    auto start = static_cast<char*>(std::aligned_alloc(kGranule, whole));
    TORCH_CHECK(start, "no main memory for ", size, " bytes");
    poison(start, whole);
    ranges()[start] = whole;
    return {start, start, &give_back, device};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }
  void copy_data(void* to, const void* from, std::size_t count) const override { default_copy_data(to, from, count); }
};

}  // namespace simulated
