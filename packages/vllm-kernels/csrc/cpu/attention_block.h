// Where the keys and values of an item stand in the paged cache, block after block.
#pragma once

#include "attention_plan.h"

namespace {

// Where a block of kKeys positions stands in the cache. `begin` and `end`: groups of 16 that are looked at, in whole
// steps of the reader.
struct Block {
  const void *keys[kKeys], *values[kKeys];
  int64_t rows[kKeys];  // which of the cache's rows they are, for scales; -1 for zeros
  int begin, end;
};

// The positions of split `split` that a tile sees: [low, high).
struct Span {
  int64_t low, high;
};

Span span_of(const Task& task, const Item& item, int64_t split) {
  const int64_t low = task.first_seen(task.position(item.seq, item.row));
  const int64_t high = task.position(item.seq, item.row + item.rows - 1) + 1;
  return {low > split * kSplit ? low : split * kSplit, high < (split + 1) * kSplit ? high : (split + 1) * kSplit};
}

// The block at `position`, a multiple of kKeys. What is outside of the span reads as zeros, so that nothing that is
// stored there matters.
template <int step>
void find_block(const Task& task, const Item& item, int64_t position, const Span& span, const void* zeros,
                Block& block) {
  const int64_t from = span.low > position ? span.low - position : 0;
  const int64_t to = span.high - position < kKeys ? span.high - position : kKeys;
  block.begin = static_cast<int>(from / (step * kLanes)) * step;
  block.end = static_cast<int>((to + step * kLanes - 1) / (step * kLanes)) * step;
  for (int i = 0; i < kKeys; ++i) {
    if (i == from) i = static_cast<int>(to);
    if (i == kKeys) break;
    block.keys[i] = block.values[i] = zeros;
    block.rows[i] = -1;
  }
  const int64_t row_bytes = task.head_dim * (task.storage == DType::f32 ? 4 : task.storage <= DType::f16 ? 2 : 1);
  const int32_t* table = task.block_table + item.seq * task.table_stride;
  int64_t index = (position + from) / task.block_size, offset = (position + from) % task.block_size;
  for (int64_t i = from; i < to; ++index, offset = 0) {
    int64_t row = (table[index] * static_cast<int64_t>(task.num_kv_heads) + item.head) * task.block_size + offset;
    const int64_t left = task.block_size - offset, stop = to - i < left ? to : i + left;
    if (task.key_scales) {  // they are read a block later
      __builtin_prefetch(task.key_scales + row, 0, 2);
      __builtin_prefetch(task.value_scales + row, 0, 2);
    }
    for (; i < stop; ++i, ++row) {
      block.keys[i] = task.keys + row * row_bytes;
      block.values[i] = task.values + row * row_bytes;
      block.rows[i] = row;
    }
  }
}

// The scales of a block's groups, zeros where it has none -> out [kKeys]. Whole groups are copied at once: sixteen
// floats that were stored one by one are slow to be read as a Vec.
void gather_scales(const float* scales, const Task& task, const Block& block, float* out) {
  for (int i = block.begin * kLanes; i < block.end * kLanes; i += kLanes) {
    const int64_t* rows = block.rows + i;
    if (task.block_size % kLanes == 0 && rows[0] >= 0 && rows[kLanes - 1] >= 0) {
      store(out + i, load(scales + rows[0]));
      continue;
    }
    for (int k = 0; k < kLanes; ++k) out[i + k] = rows[k] < 0 ? 0.f : scales[rows[k]];
  }
}

// The block that is read after the one at `position` of a split: the next of this split, the first of the next one, or
// the first of the item that follows. False if there is none.
template <int step>
bool find_next_block(const Task& task, const Item& item, int64_t split, const Span& span, int64_t position,
                     const Item* follower, const void* zeros, Block& block) {
  if (position + kKeys < span.high) {
    find_block<step>(task, item, position + kKeys, span, zeros, block);
    return true;
  }
  const bool here = split + 1 < item.split_end;
  if (!here && !follower) return false;
  const Item& owner = here ? item : *follower;
  const Span next = span_of(task, owner, here ? split + 1 : owner.split);
  find_block<step>(task, owner, next.low / kKeys * kKeys, next, zeros, block);
  return true;
}

}  // namespace
