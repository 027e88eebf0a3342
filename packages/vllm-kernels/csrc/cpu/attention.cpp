// Attention of the new tokens of many sequences to what the paged cache holds of theirs.
//
// The work is cut into items: a tile of query rows (a row is one query head of one token; the heads of a KV head follow
// one another, so that its keys and values are read once for all of them) by a range of key splits. A split is kSplit
// positions, counted from the sequence's first token; it is summed by itself, block after block of kKeys, and the splits
// of a row are folded in order. So a row's result has one order of sums, whatever else is in the batch, however its
// prompt is cut into chunks, and however the items are shared among threads.
#include "attention_softmax.h"
#include "buffer.h"
#include "parallel.h"

namespace {

constexpr int kSplit = 512;
constexpr int kTileRows = 96;

using PackRows = void (*)(const void* const* rows, const void* const* next, int begin, int end, int head_dim,
                          float* packed);

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

  int group() const { return num_heads / num_kv_heads; }
  int64_t query_len(int64_t seq) const { return query_starts[seq + 1] - query_starts[seq]; }
  // Position of the token of query row `row` of a sequence, and the first position that it sees.
  int64_t position(int64_t seq, int64_t row) const { return seq_lens[seq] - query_len(seq) + row / group(); }
  int64_t first_seen(int64_t position) const { return window > 0 && position >= window ? position - window + 1 : 0; }
};

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
  static int64_t padded(int64_t rows) { return (rows + kLanes - 1) / kLanes * kLanes; }
  static int64_t floats(int64_t rows, int64_t width) { return 2 * padded(rows) + padded(rows) * width; }
};

// Where the entries and scales of a block of kKeys positions are. `begin` and `end`: groups of 16 that are looked at.
struct Block {
  const void *keys[kKeys], *values[kKeys];
  alignas(64) float key_scales[kKeys], value_scales[kKeys];
  int begin, end;
};

// Scratch memory of a thread, divided.
template <class Units>
struct Scratch {
  float *query, *scores, *weights, *keys, *values, *row_sums, *factors, *slopes, *zeros;
  float *first_partial, *next_partial;
  int64_t *first, *last;

  Scratch(Buffer& buffer, int head_dim) {
    const int64_t width = padded_dim<Units>(head_dim), units = width / Units::kPerUnit;
    const int64_t partial = Partial::floats(kTileRows, width);
    const int64_t sizes[] = {kTileRows * units,  kTileRows * kKeys, kTileRows * kKeys, units * kKeys, kKeys * width,
                             kTileRows * kLanes, kTileRows,         kTileRows,         width,         partial,
                             partial,            2 * kTileRows,     2 * kTileRows};
    float** const parts[] = {&query,     &scores,  &weights, &keys,  &values,        &row_sums,
                             &factors,   &slopes,  &zeros,   &first_partial, &next_partial};
    int64_t total = 0;
    for (int64_t size : sizes) total += Partial::padded(size);
    float* memory = (float*)buffer.get(total * sizeof(float));
    int i = 0;
    for (float** part : parts) *part = memory, memory += Partial::padded(sizes[i++]);
    first = (int64_t*)memory;
    last = (int64_t*)(memory + Partial::padded(sizes[i]));
    for (int64_t k = 0; k < width; ++k) zeros[k] = 0.f;
  }
};

// Positions [low, high) of a sequence that begin at `position`, a multiple of kKeys. Those before low and from high on
// read as zeros, so that nothing that is stored there matters.
void find_block(const Task& task, const Item& item, int64_t position, int64_t low, int64_t high, const void* zeros,
                Block& block) {
  const int64_t from = low > position ? low - position : 0;
  const int64_t to = high - position < kKeys ? high - position : kKeys;
  block.begin = static_cast<int>(from / kLanes);
  block.end = static_cast<int>((to + kLanes - 1) / kLanes);
  for (int i = 0; i < kKeys; ++i) {
    if (i == from) i = static_cast<int>(to);
    if (i == kKeys) break;
    block.keys[i] = block.values[i] = zeros;
    block.key_scales[i] = block.value_scales[i] = 0.f;
  }
  const int64_t row_bytes = task.head_dim * (task.storage == DType::f32 ? 4 : task.storage <= DType::f16 ? 2 : 1);
  const int32_t* table = task.block_table + item.seq * task.table_stride;
  int64_t index = (position + from) / task.block_size, offset = (position + from) % task.block_size;
  for (int64_t i = from; i < to; ++index, offset = 0) {
    int64_t row = (table[index] * static_cast<int64_t>(task.num_kv_heads) + item.head) * task.block_size + offset;
    const int64_t left = task.block_size - offset, stop = to - i < left ? to : i + left;
    for (; i < stop; ++i, ++row) {
      block.keys[i] = task.keys + row * row_bytes;
      block.values[i] = task.values + row * row_bytes;
      if (task.key_scales) {
        block.key_scales[i] = task.key_scales[row];
        block.value_scales[i] = task.value_scales[row];
      }
    }
  }
}

// The partial sums of one split of an item, whose queries and rows are in the scratch.
template <class Units>
void sum_split(const Task& task, const Item& item, int64_t split, PackRows pack_k, PackRows pack_v,
               const Scratch<Units>& scratch, Partial partial) {
  const int width = padded_dim<Units>(task.head_dim), units = width / Units::kPerUnit, rows = item.rows;
  const Rows state = {rows, scratch.first, scratch.last, task.slopes ? scratch.slopes : nullptr,
                      partial.largest, scratch.row_sums, scratch.factors};
  for (int r = 0; r < rows; ++r) {
    partial.largest[r] = kLowest;
    store(scratch.row_sums + r * kLanes, zero());
  }
  int64_t low = scratch.first[0], high = scratch.last[rows - 1] + 1;
  if (low < split * kSplit) low = split * kSplit;
  if (high > (split + 1) * kSplit) high = (split + 1) * kSplit;
  Block blocks[2];
  int64_t position = low / kKeys * kKeys;
  find_block(task, item, position, low, high, scratch.zeros, blocks[0]);
  bool summed = false;
  for (int turn = 0; position < high; position += kKeys, turn ^= 1) {
    const Block &block = blocks[turn], &next = blocks[turn ^ 1];
    const bool more = position + kKeys < high;
    if (more) find_block(task, item, position + kKeys, low, high, scratch.zeros, blocks[turn ^ 1]);
    const int begin = block.begin, end = block.end, first_unit = begin * kLanes / Units::kPerUnit;
    pack_k(block.keys, block.values, begin, end, task.head_dim, scratch.keys);
    product<Units>(rows, end - begin, scratch.query, units, scratch.keys + begin * kLanes, kKeys,
                   scratch.scores + begin * kLanes, kKeys, units, nullptr);
    weigh<Units>(scratch.scores, scratch.weights, task.rule, state, position, begin, end,
                 task.key_scales ? block.key_scales : nullptr, task.value_scales ? block.value_scales : nullptr);
    pack_v(block.values, more ? next.keys : nullptr, begin, end, task.head_dim, scratch.values);
    product<Units>(rows, width / kLanes, scratch.weights + first_unit, kKeys / Units::kPerUnit,
                   scratch.values + static_cast<int64_t>(first_unit) * width, width, partial.sums, width,
                   (end - begin) * kLanes / Units::kPerUnit, summed ? scratch.factors : nullptr);
    summed = true;
  }
  for (int r = 0; r < rows; ++r) partial.total[r] = sum(load(scratch.row_sums + r * kLanes));
}

// into += from, of the split that follows.
void fold(const Partial& into, const Partial& from, int rows, int width) {
  for (int r = 0; r < rows; r += kLanes) {
    const Vec a = load(into.largest + r), b = load(from.largest + r), top = max(a, b);
    const Vec shift = select(less(top, splat(-3e38f)), zero(), top);  // -infinity: neither split has seen anything
    const Vec scale_a = exp(a - shift), scale_b = exp(b - shift);
    store(into.largest + r, top);
    store(into.total + r, load(into.total + r) * scale_a + load(from.total + r) * scale_b);
    alignas(64) float factors_a[kLanes], factors_b[kLanes];
    store(factors_a, scale_a);
    store(factors_b, scale_b);
    for (int k = 0; k < kLanes && r + k < rows; ++k) {
      float* x = into.sums + static_cast<int64_t>(r + k) * width;
      const float* y = from.sums + static_cast<int64_t>(r + k) * width;
      const Vec factor_a = splat(factors_a[k]), factor_b = splat(factors_b[k]);
      for (int i = 0; i < width; i += kLanes) store(x + i, load(x + i) * factor_a + load(y + i) * factor_b);
    }
  }
}

// Sums over all splits -> outputs.
template <class Units>
void finish(const Task& task, const Item& item, const Partial& partial) {
  const int width = padded_dim<Units>(task.head_dim), group = task.group();
  with_type(task.query_type, [&](auto type) {
    using T = decltype(type);
    for (int r = 0; r < item.rows; ++r) {
      const int64_t row = item.row + r, token = task.query_starts[item.seq] + row / group;
      const int head = item.head * group + static_cast<int>(row % group);
      float factor = 1.f / partial.total[r];
      if (task.sinks) {
        const float sink = task.sinks[head], own = partial.largest[r], top = sink > own ? sink : own;
        alignas(64) float scaled[kLanes] = {own - top, sink - top};
        store(scaled, exp(load(scaled)));
        factor = scaled[0] / (partial.total[r] * scaled[0] + scaled[1]);
      }
      auto* to = (typename T::type*)task.out + (token * task.num_heads + head) * task.head_dim;
      for (int i = 0; i < task.head_dim; i += kLanes * Units::kPerUnit) {
        Vec x[Units::kPerUnit];
        ordered_columns<Units>(partial.sums + static_cast<int64_t>(r) * width, i, x);
        for (int k = 0; k < Units::kPerUnit; ++k) {
          const int left = task.head_dim - i - k * kLanes;
          if (left >= kLanes)
            T::store(to + i + k * kLanes, x[k] * splat(factor));
          else if (left > 0)
            T::store(to + i + k * kLanes, x[k] * splat(factor), first(left));
        }
      }
    }
  });
}

template <class Units>
void prepare_rows(const Task& task, const Item& item, const Scratch<Units>& scratch) {
  const int group = task.group(), units = padded_dim<Units>(task.head_dim) / Units::kPerUnit;
  with_type(task.query_type, [&](auto type) {
    using T = decltype(type);
    for (int r = 0; r < item.rows; ++r) {
      const int64_t row = item.row + r, token = task.query_starts[item.seq] + row / group;
      const int head = item.head * group + static_cast<int>(row % group);
      const auto* from = (const typename T::type*)task.query + token * task.query_stride;
      pack_query<Units, T>(from + static_cast<int64_t>(head) * task.head_dim, task.head_dim,
                           scratch.query + static_cast<int64_t>(r) * units);
      scratch.last[r] = task.position(item.seq, row);
      scratch.first[r] = task.first_seen(scratch.last[r]);
      if (task.slopes) scratch.slopes[r] = task.slopes[head];
    }
  });
}

template <class Units>
void run_item(const Task& task, const Item& item, Shared* shared, float* partials, PackRows pack_k, PackRows pack_v,
              const Scratch<Units>& scratch) {
  const int width = padded_dim<Units>(task.head_dim);
  prepare_rows(task, item, scratch);
  if (item.shared < 0) {
    const Partial all(scratch.first_partial, item.rows), next(scratch.next_partial, item.rows);
    sum_split(task, item, item.split, pack_k, pack_v, scratch, all);
    for (int64_t split = item.split + 1; split < item.split_end; ++split) {
      sum_split(task, item, split, pack_k, pack_v, scratch, next);
      fold(all, next, item.rows, width);
    }
    finish<Units>(task, item, all);
    return;
  }
  Shared& tile = shared[item.shared];
  const auto of_split = [&](int64_t split) {
    return Partial(partials + tile.partials + (split - tile.first_split) * Partial::floats(item.rows, width), item.rows);
  };
  for (int64_t split = item.split; split < item.split_end; ++split)
    sum_split(task, item, split, pack_k, pack_v, scratch, of_split(split));
  if (__atomic_sub_fetch(&tile.open_parts, 1, __ATOMIC_ACQ_REL) > 0) return;
  const Partial all = of_split(tile.first_split);
  for (int split = 1; split < tile.num_splits; ++split) fold(all, of_split(tile.first_split + split), item.rows, width);
  finish<Units>(task, item, all);
}

// How a step is cut: rows of a tile at most, and the cost above which a tile is cut into parts.
struct Cut {
  int64_t tile_rows, part_cost;
};

// Calls body(seq, row, rows, first split, end of splits, cost) for each tile of one KV head. The cost is in units of a
// row of queries times a position; packing a position costs as much as kPackingRows of them.
constexpr int kPackingRows = 12;

template <class Body>
void for_each_tile(const Task& task, int64_t tile_rows, const Body& body) {
  for (int64_t seq = 0; seq < task.num_seqs; ++seq) {
    const int64_t all = task.query_len(seq) * task.group();
    if (all <= 0) continue;
    const int64_t tiles = (all + tile_rows - 1) / tile_rows;
    const int64_t rows = ((all + tiles - 1) / tiles + kBlockRows - 1) / kBlockRows * kBlockRows;
    for (int64_t row = 0; row < all; row += rows) {
      const int64_t count = all - row < rows ? all - row : rows;
      const int64_t low = task.first_seen(task.position(seq, row)), high = task.position(seq, row + count - 1) + 1;
      body(seq, row, count, low / kSplit, (high + kSplit - 1) / kSplit, (high - low) * (count + kPackingRows));
    }
  }
}

Cut choose_cut(const Task& task, int threads) {
  Cut cut = {kTileRows, INT64_MAX};
  int64_t tiles, cost;
  const auto look = [&] {
    tiles = cost = 0;
    for_each_tile(task, cut.tile_rows, [&](int64_t, int64_t, int64_t, int64_t, int64_t, int64_t tile_cost) {
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
  if (threads > 1) cut.part_cost = cost / (threads * 8) + 1;
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
  for_each_tile(task, cut.tile_rows, measure);
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
  for_each_tile(task, cut.tile_rows, place);
  return plan;
}

template <class Units, class Format>
void set_packers(PackRows& keys, PackRows& values) {
  keys = pack_keys<Units, Format>;
  values = pack_values<Units, Format>;
}

template <class Units>
void attend(const Task& task, int threads) {
  PackRows pack_k, pack_v;
  switch (task.storage) {
    case DType::bf16: set_packers<Units, BF16>(pack_k, pack_v); break;
    case DType::fp8_e4m3: set_packers<Units, E4M3>(pack_k, pack_v); break;
    case DType::fp8_e5m2: set_packers<Units, E5M2>(pack_k, pack_v); break;
    case DType::i8: set_packers<Units, I8>(pack_k, pack_v); break;
    default:
      if constexpr (Units::kPerUnit == 1) {
        if (task.storage == DType::f16)
          set_packers<Units, F16>(pack_k, pack_v);
        else
          set_packers<Units, F32>(pack_k, pack_v);
      } else {
        return;  // wider than bf16: never comes here
      }
  }
  static thread_local Buffer plan_memory, partial_memory;
  const int width = padded_dim<Units>(task.head_dim);
  const Plan plan = plan_items(task, choose_cut(task, threads), width, plan_memory);
  float* partials = plan.partial_floats ? (float*)partial_memory.get(plan.partial_floats * sizeof(float)) : nullptr;
  if (plan.num_items == 1) threads = 1;  // nothing between 1 and all: see run_team
  int64_t taken = 0;
  run_team(threads, [&](int, int) {
    static thread_local Buffer scratch_memory;
    const Scratch<Units> scratch(scratch_memory, task.head_dim);
    for (int64_t i; (i = __atomic_fetch_add(&taken, 1, __ATOMIC_RELAXED)) < plan.num_items;)
      run_item(task, plan.items[i], plan.shared, partials, pack_k, pack_v, scratch);
  });
}

// out [num_tokens, num_heads, head_dim] = attention of query (rows of `query_stride` elements, heads next to one another)
// to keys and values [num_blocks, num_kv_heads, block_size, head_dim] with scales [num_blocks, num_kv_heads, block_size]
// or null. query_starts [num_seqs + 1], seq_lens [num_seqs]; block_table [num_seqs, table_stride], whose followed entries
// were checked. slopes, sinks [num_heads] fp32 or null; window 0 and soft_cap 0: none.
void paged_attention(const void* query, void* out, const void* keys, const void* values, const float* key_scales,
                     const float* value_scales, const float* slopes, const float* sinks, const int64_t* query_starts,
                     const int64_t* seq_lens, const int32_t* block_table, int64_t table_stride, int64_t num_seqs,
                     int64_t query_stride, int64_t num_heads, int64_t num_kv_heads, int64_t head_dim,
                     int64_t block_size, int64_t window, float scale, float soft_cap, int32_t query_type,
                     int32_t storage, int32_t threads) {
  const Task task = {(const char*)query,
                     out,
                     (const char*)keys,
                     (const char*)values,
                     key_scales,
                     value_scales,
                     slopes,
                     sinks,
                     query_starts,
                     seq_lens,
                     block_table,
                     table_stride,
                     num_seqs,
                     query_stride,
                     static_cast<int>(num_heads),
                     static_cast<int>(num_kv_heads),
                     static_cast<int>(head_dim),
                     block_size,
                     window,
                     {scale, soft_cap},
                     static_cast<DType>(query_type),
                     static_cast<DType>(storage)};
#if defined(__AVX512BF16__)
  // Where queries are bf16 and no entry has more digits, so are the factors of the products; sums are fp32 everywhere.
  if (task.query_type == DType::bf16 && task.storage != DType::f32 && task.storage != DType::f16)
    return attend<BF16Units>(task, threads);
#endif
  attend<F32Units>(task, threads);
}

// bad [2] = sequence and index of the first entry of the block table that is followed and lies outside the cache or
// outside the table; -1 and -1 if there is none.
void check_block_table(const int64_t* query_starts, const int64_t* seq_lens, const int32_t* block_table,
                       int64_t table_stride, int64_t num_seqs, int64_t num_blocks, int64_t block_size, int64_t window,
                       int64_t* bad) {
  bad[0] = bad[1] = -1;
  for (int64_t seq = 0; seq < num_seqs; ++seq) {
    const int64_t query_len = query_starts[seq + 1] - query_starts[seq];
    if (query_len <= 0) continue;
    const int64_t low = window > 0 ? seq_lens[seq] - query_len - window + 1 : 0;
    const int64_t end = (seq_lens[seq] + block_size - 1) / block_size;
    for (int64_t i = low > 0 ? low / block_size : 0; i < end; ++i) {
      const int32_t block = i < table_stride ? block_table[seq * table_stride + i] : -1;
      if (block >= 0 && block < num_blocks) continue;
      bad[0] = seq;
      bad[1] = i;
      return;
    }
  }
}

}  // namespace

VLLM_KERNELS(attention) = {
    {"paged_attention", (void*)paged_attention},
    {"check_block_table", (void*)check_block_table},
    VLLM_KERNELS_END,
};
