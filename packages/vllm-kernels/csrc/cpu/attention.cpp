// Attention of the new tokens of many sequences to what the paged cache holds of theirs.
//
// A split of a row's positions is summed by itself, block after block of kKeys, and the splits are folded in order. So
// a row's result has one order of sums, whatever else is in the batch, however the work is cut into items
// (attention_plan.h) and shared among threads, and with `batch_invariant` however its prompt is cut into chunks.
#include <type_traits>

#include "attention_direct.h"
#include "attention_lanewise.h"
#include "attention_plan.h"
#include "parallel.h"
#if defined(__AMX_BF16__)
#include "attention_tile.h"
#endif

namespace {

using PackRows = void (*)(const void* const* rows, const void* const* next, int begin, int end, int head_dim,
                          float* packed);
using DirectScores = void (*)(const void* const* rows, const void* const* next, int begin, int end, int head_dim,
                              const float* query, float* scores);
using DirectSums = void (*)(const void* const* rows, const void* const* next, int begin, int end, int head_dim,
                            const float* weights, float* sums, const float* factors);

// What reads a cache of one format.
struct Readers {
  PackRows keys, values;
  DirectScores scores[kBlockRows + 1];  // by the number of query rows; as many are touched at least
  DirectSums sums[kBlockRows + 1];
};

// Where a block of kKeys positions stands in the cache. `begin` and `end`: groups of 16 that are looked at.
struct Block {
  const void *keys[kKeys], *values[kKeys];
  int64_t rows[kKeys];  // which of the cache's rows they are, for scales; -1 for zeros
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
void find_block(const Task& task, const Item& item, int64_t position, const Span& span, const void* zeros,
                Block& block) {
  const int64_t from = span.low > position ? span.low - position : 0;
  const int64_t to = span.high - position < kKeys ? span.high - position : kKeys;
  block.begin = static_cast<int>(from / (kGroupStep * kLanes)) * kGroupStep;
  block.end = static_cast<int>((to + kGroupStep * kLanes - 1) / (kGroupStep * kLanes)) * kGroupStep;
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
bool find_next_block(const Task& task, const Item& item, int64_t split, const Span& span, int64_t position,
                     const Item* follower, const void* zeros, Block& block) {
  if (position + kKeys < span.high) {
    find_block(task, item, position + kKeys, span, zeros, block);
    return true;
  }
  const bool here = split + 1 < item.split_end;
  if (!here && !follower) return false;
  const Item& owner = here ? item : *follower;
  const Span next = span_of(task, owner, here ? split + 1 : owner.split);
  find_block(task, owner, next.low / kKeys * kKeys, next, zeros, block);
  return true;
}

// Whether a sequence's few rows are multiplied without packing. If they must, that gives the same bits as product(); as
// tiles it never does.
bool reads_directly(const Task& task, int64_t seq) {
  return task.query_len(seq) * task.group() <= kBlockRows && !(kTiles && task.batch_invariant);
}

// The product of packed operands: on tiles where there are some.
template <class Units>
void matmul(int rows, int vecs, const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc,
            int units, const float* factors) {
#if defined(__AMX_BF16__)
  if constexpr (Units::kPerUnit == 2) return tile_product(rows, vecs, a, lda, b, ldb, c, ldc, units, factors);
#endif
  product<Units>(rows, vecs, a, lda, b, ldb, c, ldc, units, factors);
}

// The partial sums of one split of an item, whose queries and rows are in the scratch.
template <class Units>
void sum_split(const Task& task, const Item& item, int64_t split, const Item* follower, const Readers& readers,
               const Scratch<Units>& scratch, Partial partial) {
  const int width = padded_dim<Units>(task.head_dim), units = width / Units::kPerUnit, rows = item.rows;
  const Rows state = {rows,           scratch.first,    scratch.last,   task.slopes ? scratch.slopes : nullptr,
                      partial.largest, scratch.row_sums, scratch.factors};
  for (int r = 0; r < rows; ++r) {
    partial.largest[r] = kLowest;
    store(scratch.row_sums + r * kLanes, zero());
  }
  const Span span = span_of(task, item, split);
  const bool direct = reads_directly(task, item.seq);
  Block blocks[2];
  int64_t position = span.low / kKeys * kKeys;
  find_block(task, item, position, span, scratch.zeros, blocks[0]);
  const float* factors = nullptr;  // of the sums so far: there are none before the first block
  for (int turn = 0; position < span.high; position += kKeys, turn ^= 1) {
    const Block &block = blocks[turn], &next = blocks[turn ^ 1];
    const bool more = find_next_block(task, item, split, span, position, follower, scratch.zeros, blocks[turn ^ 1]);
    const void* const* next_keys = more ? next.keys : nullptr;
    const int begin = block.begin, end = block.end, first_unit = begin * kLanes / Units::kPerUnit;
    if (direct) {
      readers.scores[rows](block.keys, block.values, begin, end, task.head_dim, scratch.query, scratch.scores);
    } else {
      readers.keys(block.keys, block.values, begin, end, task.head_dim, scratch.keys);
      matmul<Units>(rows, end - begin, scratch.query, units, scratch.keys + begin * kLanes, kKeys,
                     scratch.scores + begin * kLanes, kKeys, units, nullptr);
    }
    alignas(64) float key_scales[kKeys], value_scales[kKeys];
    const bool scaled = task.key_scales;
    if (scaled) {
      gather_scales(task.key_scales, task, block, key_scales);
      gather_scales(task.value_scales, task, block, value_scales);
    }
    weigh<Units>(scratch.scores, scratch.weights, task.rule, state, position, begin, end,
                 scaled ? key_scales : nullptr, scaled ? value_scales : nullptr);
    if (direct) {
      readers.sums[rows](block.values, next_keys, begin, end, task.head_dim, scratch.weights, partial.sums, factors);
    } else {
      readers.values(block.values, next_keys, begin, end, task.head_dim, scratch.values);
      matmul<Units>(rows, width / kLanes, scratch.weights + first_unit, kKeys / Units::kPerUnit,
                     scratch.values + static_cast<int64_t>(first_unit) * width, width, partial.sums, width,
                     (end - begin) * kLanes / Units::kPerUnit, factors);
    }
    factors = scratch.factors;
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
void run_item(const Task& task, const Item& item, const Item* follower, Shared* shared, float* partials,
              const Readers& readers, const Scratch<Units>& scratch) {
  const int width = padded_dim<Units>(task.head_dim);
  prepare_rows(task, item, scratch);
  if (item.shared < 0) {
    const Partial all(scratch.first_partial, item.rows), next(scratch.next_partial, item.rows);
    sum_split(task, item, item.split, follower, readers, scratch, all);
    for (int64_t split = item.split + 1; split < item.split_end; ++split) {
      sum_split(task, item, split, follower, readers, scratch, next);
      fold(all, next, item.rows, width);
    }
    finish<Units>(task, item, all);
    return;
  }
  Shared& tile = shared[item.shared];
  const auto of_split = [&](int64_t split) {
    const int64_t index = split - tile.first_split;
    return Partial(partials + tile.partials + index * Partial::floats(item.rows, width), item.rows);
  };
  for (int64_t split = item.split; split < item.split_end; ++split)
    sum_split(task, item, split, follower, readers, scratch, of_split(split));
  if (__atomic_sub_fetch(&tile.open_parts, 1, __ATOMIC_ACQ_REL) > 0) return;
  const Partial all = of_split(tile.first_split);
  for (int split = 1; split < tile.num_splits; ++split) fold(all, of_split(tile.first_split + split), item.rows, width);
  finish<Units>(task, item, all);
}

template <class Units, class Format, int R>
void set_direct(Readers& readers, int fewest, [[maybe_unused]] bool batch_invariant) {
  for (int rows = fewest; rows <= R; ++rows) {
    readers.scores[rows] = direct_scores<Units, Format, R>;
#if defined(__AVX512F__)
    if (!batch_invariant) readers.scores[rows] = lanewise_scores<Units, Format, R>;
#endif
    readers.sums[rows] = direct_sums<Units, Format, R>;
  }
}

template <class Units, class Format>
Readers readers_of(bool batch_invariant) {
  Readers readers = {pack_keys<Units, Format>, pack_values<Units, Format>, {}, {}};
  set_direct<Units, Format, 1>(readers, 1, batch_invariant);
  set_direct<Units, Format, 2>(readers, 2, batch_invariant);
  set_direct<Units, Format, 4>(readers, 3, batch_invariant);
  set_direct<Units, Format, kBlockRows>(readers, 5, batch_invariant);
  return readers;
}

template <class Units>
void attend(const Task& task, int threads) {
  Readers readers = {};
  with_storage(task.storage, [&](auto type) {
    using Format = decltype(type);
    // Pairs of bf16 are for what has no more digits than they have.
    constexpr bool exact = !std::is_same_v<Format, F32> && !std::is_same_v<Format, F16>;
    if constexpr (Units::kPerUnit == 1 || exact) readers = readers_of<Units, Format>(task.batch_invariant);
  });
  static thread_local Buffer plan_memory, partial_memory;
  const int width = padded_dim<Units>(task.head_dim);
  const Plan plan = plan_items(task, choose_cut(task, threads), width, plan_memory);
  float* partials = plan.partial_floats ? (float*)partial_memory.get(plan.partial_floats * sizeof(float)) : nullptr;
  if (plan.num_items == 1) threads = 1;  // nothing between 1 and all: see run_team
  int64_t taken = 0;
  run_team(threads, [&](int, int) {
    static thread_local Buffer scratch_memory;
    const Scratch<Units> scratch(scratch_memory, task.head_dim);
#if defined(__AMX_BF16__)
    tiles_begin();
#endif
    const auto take = [&] { return __atomic_fetch_add(&taken, 1, __ATOMIC_RELAXED); };
    // An item is taken before the one at hand is done, which ends by asking for what the next begins with.
    for (int64_t i = take(), next; i < plan.num_items; i = next) {
      next = take();
      const Item* follower = next < plan.num_items ? plan.items + next : nullptr;
      run_item(task, plan.items[i], follower, plan.shared, partials, readers, scratch);
    }
#if defined(__AMX_BF16__)
    tiles_end();
#endif
  });
}

// out [num_tokens, num_heads, head_dim] = attention of query (rows of `query_stride` elements, heads next to one
// another) to keys and values [num_blocks, num_kv_heads, block_size, head_dim] with scales [num_blocks, num_kv_heads,
// block_size] or null. query_starts [num_seqs + 1], seq_lens [num_seqs]; block_table [num_seqs, table_stride], whose
// followed entries were checked. slopes, sinks [num_heads] fp32 or null; window 0 and soft_cap 0: none.
// batch_invariant: the sums of a token must not depend on how many new tokens its sequence has, which they do on AMX
// tiles and with lanewise_scores().
void paged_attention(const void* query, void* out, const void* keys, const void* values, const float* key_scales,
                     const float* value_scales, const float* slopes, const float* sinks, const int64_t* query_starts,
                     const int64_t* seq_lens, const int32_t* block_table, int64_t table_stride, int64_t num_seqs,
                     int64_t query_stride, int64_t num_heads, int64_t num_kv_heads, int64_t head_dim,
                     int64_t block_size, int64_t window, float scale, float soft_cap, int32_t query_type,
                     int32_t storage, int32_t batch_invariant, int32_t threads) {
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
                     static_cast<DType>(storage),
                     batch_invariant != 0};
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
    VLLM_KERNEL(paged_attention),
    VLLM_KERNEL(check_block_table),
    VLLM_KERNELS_END,
};
