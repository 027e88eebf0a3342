// How the attention of a step is cut into items of work.
//
// An item is a tile of query rows (a row is one query head of one token; the heads of a KV head follow one another, so
// that its keys and values are read once for all of them) and a range of splits. A split is kSplit positions, counted
// from the sequence's first token.
#pragma once

#include "attention_softmax.h"
#include "buffer.h"

namespace {

constexpr int kSplit = 512;

// How many query rows an item has at most, and of which number it has a multiple where its sequence has more.
struct ItemRows {
  int most, step;
};

constexpr ItemRows kVectorRows = {96, kBlockRows};

// What Python hands over, see paged_attention below.
struct Task {
  const char* query;
  void* out;
  const char *keys, *values;
  const float *key_scales, *value_scales, *slopes, *sinks;
  const int64_t* query_starts;
  const int64_t* seq_lens;
  const int32_t* block_table;
  int64_t table_stride, num_seqs, query_stride;
  int num_heads, num_kv_heads, head_dim;
  int64_t block_size, window;
  ScoreRule rule;
  DType query_type, storage;
  bool batch_invariant;

  int group() const { return num_heads / num_kv_heads; }
  int64_t query_len(int64_t seq) const { return query_starts[seq + 1] - query_starts[seq]; }
  // Position of the token of query row `row` of a sequence, and the first position that it sees.
  int64_t position(int64_t seq, int64_t row) const { return seq_lens[seq] - query_len(seq) + row / group(); }
  int64_t first_seen(int64_t position) const { return window > 0 && position >= window ? position - window + 1 : 0; }
};

// Calls body(r, token, head, position) for query rows [row, row + rows) of a sequence and a KV head: row `row + r` is
// query head `head` of token `token` of the step, at `position` of its sequence. It counts along: dividing for each row
// takes longer than what is done with it.
template <class Body>
void for_each_row(const Task& task, int seq, int kv_head, int64_t row, int64_t rows, const Body& body) {
  const int group = task.group();
  const int64_t begin = task.query_starts[seq], computed = task.seq_lens[seq] - task.query_len(seq);
  int64_t token = row / group;
  int member = static_cast<int>(row % group);
  for (int r = 0; r < rows; ++r) {
    body(r, begin + token, kv_head * group + member, computed + token);
    if (++member == group) member = 0, ++token;
  }
}

// Rows [row, row + rows) of a sequence's query rows for one KV head, and splits [split, split_end) of its positions.
struct Item {
  int32_t seq, head, row, rows, split, split_end;
  int32_t shared;  // index of what the parts of a tile share; -1 for a tile in one part
};

// A tile whose splits are several items: each leaves its partial sums, and the last one to finish folds them.
struct Shared {
  int64_t partials;  // where they begin, in floats
  int32_t first_split, num_splits, open_parts;
};

// Sums of one split: weights times values [rows][width], and each row's largest score and sum of weights.
struct Partial {
  float *largest, *total, *sums;
  Partial(float* memory, int rows) : largest(memory), total(memory + padded(rows)), sums(memory + 2 * padded(rows)) {}
  // Of the rows from `row` on, a multiple of 16.
  Partial from_row(int64_t row, int64_t width) const {
    Partial rest = *this;
    rest.largest += row, rest.total += row, rest.sums += row * width;
    return rest;
  }
  static int64_t padded(int64_t rows) { return (rows + kLanes - 1) / kLanes * kLanes; }
  static int64_t floats(int64_t rows, int64_t width) { return 2 * padded(rows) + padded(rows) * width; }
};

// How a step is cut: rows of a tile at most and their step, and the cost above which a tile is cut into parts.
struct Cut {
  int64_t tile_rows, row_step, part_cost;
};

// body(F32()), ...: the type of queries. Pairs of bf16 are for queries of bf16 alone.
template <class Units, class Body>
void with_query_type(const Task& task, const Body& body) {
  if constexpr (Units::kPerUnit == 2)
    body(BF16());
  else
    with_type(task.query_type, body);
}

// Calls body(seq, row, rows, first split, end of splits, cost) for each tile of one KV head. The cost is in units of a
// row of queries times a position; packing a position costs as much as kPackingRows of them.
constexpr int kPackingRows = 12;

template <class Body>
void for_each_tile(const Task& task, const Cut& cut, const Body& body) {
  for (int64_t seq = 0; seq < task.num_seqs; ++seq) {
    const int64_t all = task.query_len(seq) * task.group();
    if (all <= 0) continue;
    const int64_t tiles = (all + cut.tile_rows - 1) / cut.tile_rows;
    const int64_t rows = ((all + tiles - 1) / tiles + cut.row_step - 1) / cut.row_step * cut.row_step;
    for (int64_t row = 0; row < all; row += rows) {
      const int64_t count = all - row < rows ? all - row : rows;
      const int64_t low = task.first_seen(task.position(seq, row)), high = task.position(seq, row + count - 1) + 1;
      body(seq, row, count, low / kSplit, (high + kSplit - 1) / kSplit, (high - low) * (count + kPackingRows));
    }
  }
}

Cut choose_cut(const Task& task, const ItemRows& item_rows, int threads) {
  Cut cut = {item_rows.most, item_rows.step, INT64_MAX};
  int64_t tiles, cost;
  const auto look = [&] {
    tiles = cost = 0;
    for_each_tile(task, cut, [&](int64_t, int64_t, int64_t, int64_t, int64_t, int64_t tile_cost) {
      ++tiles;
      cost += tile_cost;
    });
    tiles *= task.num_kv_heads;
    cost *= task.num_kv_heads;
  };
  look();
  while (threads > 1 && cut.tile_rows > 24 && tiles < 3 * threads && tiles > 0) {
    const int64_t before = tiles;
    cut.tile_rows /= 2;
    look();
    if (tiles == before) break;  // tokens are few: smaller tiles change nothing
  }
  if (threads > 1) cut.part_cost = cost / (threads * 16) + 1;
  return cut;
}

// A multiple of a split's share of a tile's cost, as many of them as stay below part_cost.
int64_t splits_of_part(int64_t splits, int64_t cost, int64_t part_cost) {
  if (cost <= part_cost || splits < 2) return splits;
  const int64_t parts = (cost + part_cost - 1) / part_cost;
  return parts >= splits ? 1 : (splits + parts - 1) / parts;
}

int log2_of(int64_t x) { return 63 - __builtin_clzll(static_cast<uint64_t>(x) | 1); }

// All items of a step, the costly ones first so that none is left for the end.
struct Plan {
  Item* items;
  Shared* shared;
  int64_t num_items, partial_floats;
};

Plan plan_items(const Task& task, const Cut& cut, int width, Buffer& memory) {
  int64_t counts[64] = {}, items = 0, tiles = 0, floats = 0;
  const auto measure = [&](int64_t, int64_t, int64_t rows, int64_t split, int64_t end, int64_t cost) {
    const int64_t step = splits_of_part(end - split, cost, cut.part_cost), parts = (end - split + step - 1) / step;
    counts[log2_of(cost / parts)] += parts * task.num_kv_heads;
    items += parts * task.num_kv_heads;
    if (parts > 1) {
      tiles += task.num_kv_heads;
      floats += task.num_kv_heads * (end - split) * Partial::floats(rows, width);
    }
  };
  for_each_tile(task, cut, measure);
  char* bytes = memory.get(items * sizeof(Item) + tiles * sizeof(Shared) + 64);
  Plan plan = {(Item*)(bytes + (tiles * sizeof(Shared) + 63) / 64 * 64), (Shared*)bytes, items, floats};
  int64_t at[64], next = 0;
  for (int i = 63; i >= 0; --i) at[i] = next, next += counts[i];
  int64_t tile = 0, partials = 0;
  const auto place = [&](int64_t seq, int64_t row, int64_t rows, int64_t split, int64_t end, int64_t cost) {
    const int64_t step = splits_of_part(end - split, cost, cut.part_cost), parts = (end - split + step - 1) / step;
    const int bucket = log2_of(cost / parts);
    for (int head = 0; head < task.num_kv_heads; ++head) {
      for (int64_t from = split; from < end; from += step) {
        Item& item = plan.items[at[bucket]++];
        item = {static_cast<int32_t>(seq),  head,
                static_cast<int32_t>(row),  static_cast<int32_t>(rows),
                static_cast<int32_t>(from), static_cast<int32_t>(end - from < step ? end : from + step),
                parts > 1 ? static_cast<int32_t>(tile) : -1};
      }
      if (parts > 1) {
        plan.shared[tile++] = {partials, static_cast<int32_t>(split), static_cast<int32_t>(end - split),
                               static_cast<int32_t>(parts)};
        partials += (end - split) * Partial::floats(rows, width);
      }
    }
  };
  for_each_tile(task, cut, place);
  return plan;
}

}  // namespace
