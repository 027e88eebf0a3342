// Attention of the new tokens of many sequences to what the paged cache holds of theirs.
//
// A split of a row's positions is summed by itself, block after block of kKeys or on tiles all at once
// (attention_tile_item.h), and the splits are folded in order. So a row's result has one order of sums, whatever else is
// in the batch, however the work is cut into items (attention_plan.h) and shared among threads, and with
// `batch_invariant` however its prompt is cut into chunks.
#include <type_traits>

#include "attention_block.h"
#include "attention_direct.h"
#include "attention_lanewise.h"
#include "attention_output.h"
#include "parallel.h"
#if defined(__AMX_BF16__)
#include "attention_tile_item.h"
#endif

namespace {

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

// Whether items of more rows than are read directly go by tiles.
#if defined(__AMX_BF16__)
template <class Units>
constexpr bool kOnTiles = Units::kPerUnit == 2;
template <class Units>
constexpr ItemRows kItemRows = kOnTiles<Units> ? kTiledRows : kVectorRows;
#else
template <class Units>
constexpr bool kOnTiles = false;
template <class Units>
constexpr ItemRows kItemRows = kVectorRows;
#endif

// Scratch memory of a thread, divided.
template <class Units>
struct Scratch {
  static constexpr int kRows = kVectorRows.most;

  float *query, *scores, *weights, *keys, *values, *row_sums, *factors, *slopes, *zeros;
  float *first_partial, *next_partial;
  int64_t *first, *last;
#if defined(__AMX_BF16__)
  TileScratch tiles;

  Scratch(Buffer& buffer, Buffer& tile_buffer, int head_dim) : tiles(tile_buffer, head_dim) {
#else
  Scratch(Buffer& buffer, Buffer&, int head_dim) {
#endif
    const int64_t width = padded_dim<Units>(head_dim), units = width / Units::kPerUnit;
    const int64_t first_rows = Partial::floats(kItemRows<Units>.most, width), next_rows = Partial::floats(kRows, width);
    const int64_t sizes[] = {kRows * units, kRows * kKeys, kRows * kKeys, units * kKeys, kKeys * width, kRows * kLanes,
                             kRows,         kRows,         width,         first_rows,    next_rows,     2 * kRows,
                             2 * kRows};
    float** const parts[] = {&query,   &scores, &weights, &keys,          &values,      &row_sums,
                             &factors, &slopes, &zeros,   &first_partial, &next_partial};
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


// Whether a sequence's few rows are multiplied without packing. If they must, that gives the same bits as product(); as
// tiles it never does.
template <class Units>
bool reads_directly(const Task& task, int64_t seq) {
  return task.query_len(seq) * task.group() <= kBlockRows && !(kOnTiles<Units> && task.batch_invariant);
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
  const bool direct = reads_directly<Units>(task, item.seq);
  Block blocks[2];
  int64_t position = span.low / kKeys * kKeys;
  find_block<1>(task, item, position, span, scratch.zeros, blocks[0]);
  const float* factors = nullptr;  // of the sums so far: there are none before the first block
  for (int turn = 0; position < span.high; position += kKeys, turn ^= 1) {
    const Block &block = blocks[turn], &next = blocks[turn ^ 1];
    const bool more = find_next_block<1>(task, item, split, span, position, follower, scratch.zeros, blocks[turn ^ 1]);
    const void* const* next_keys = more ? next.keys : nullptr;
    const int begin = block.begin, end = block.end, first_unit = begin * kLanes / Units::kPerUnit;
    if (direct) {
      readers.scores[rows](block.keys, block.values, begin, end, task.head_dim, scratch.query, scratch.scores);
    } else {
      readers.keys(block.keys, block.values, begin, end, task.head_dim, scratch.keys);
      product<Units>(rows, end - begin, scratch.query, units, scratch.keys + begin * kLanes, kKeys,
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
      product<Units>(rows, width / kLanes, scratch.weights + first_unit, kKeys / Units::kPerUnit,
                     scratch.values + static_cast<int64_t>(first_unit) * width, width, partial.sums, width,
                     (end - begin) * kLanes / Units::kPerUnit, factors);
    }
    factors = scratch.factors;
  }
  for (int r = 0; r < rows; ++r) partial.total[r] = sum(load(scratch.row_sums + r * kLanes));
}

template <class Units>
void prepare_rows(const Task& task, const Item& item, const Scratch<Units>& scratch) {
  const int units = padded_dim<Units>(task.head_dim) / Units::kPerUnit;
  with_query_type<Units>(task, [&](auto type) {
    using T = decltype(type);
    const auto prepare = [&](int r, int64_t token, int head, int64_t position) {
      const auto* from = (const typename T::type*)task.query + token * task.query_stride;
      pack_query<Units, T>(from + static_cast<int64_t>(head) * task.head_dim, task.head_dim,
                           scratch.query + static_cast<int64_t>(r) * units);
      scratch.last[r] = position;
      scratch.first[r] = task.first_seen(position);
      if (task.slopes) scratch.slopes[r] = task.slopes[head];
    };
    for_each_row(task, item.seq, item.head, item.row, item.rows, prepare);
  });
}

// Adds one split of an item to its partial sums, or begins them with it.
template <class Units>
void add_split(const Task& task, const Item& item, int64_t split, const Item* follower, const Readers& readers,
               const Scratch<Units>& scratch, const Partial& into, bool begins) {
#if defined(__AMX_BF16__)
  if constexpr (kOnTiles<Units>)
    if (!reads_directly<Units>(task, item.seq))
      return add_on_tiles(task, item, split, follower, readers.keys, readers.values, scratch.tiles, into, begins);
#endif
  if (begins) return sum_split(task, item, split, follower, readers, scratch, into);
  const Partial next(scratch.next_partial, item.rows);
  sum_split(task, item, split, follower, readers, scratch, next);
  fold(into, next, item.rows, padded_dim<Units>(task.head_dim));
}

template <class Units>
void run_item(const Task& task, const Item& item, const Item* follower, Shared* shared, float* partials,
              const Readers& readers, const Scratch<Units>& scratch) {
  const int width = padded_dim<Units>(task.head_dim);
  if (!kOnTiles<Units> || reads_directly<Units>(task, item.seq)) prepare_rows(task, item, scratch);
  if (item.shared < 0) {
    const Partial all(scratch.first_partial, item.rows);
    for (int64_t split = item.split; split < item.split_end; ++split)
      add_split(task, item, split, follower, readers, scratch, all, split == item.split);
    finish<Units>(task, item, all);
    return;
  }
  Shared& tile = shared[item.shared];
  const auto of_split = [&](int64_t split) {
    const int64_t index = split - tile.first_split;
    return Partial(partials + tile.partials + index * Partial::floats(item.rows, width), item.rows);
  };
  for (int64_t split = item.split; split < item.split_end; ++split)
    add_split(task, item, split, follower, readers, scratch, of_split(split), true);
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
#if defined(__AMX_BF16__)
  if constexpr (kOnTiles<Units>) readers.keys = pack_key_tiles<Format>, readers.values = pack_value_tiles<Format>;
#endif
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
  const Plan plan = plan_items(task, choose_cut(task, kItemRows<Units>, threads), width, plan_memory);
  float* partials = plan.partial_floats ? (float*)partial_memory.get(plan.partial_floats * sizeof(float)) : nullptr;
  if (plan.num_items == 1) threads = 1;  // nothing between 1 and all: see run_team
  int64_t taken = 0;
  run_team(threads, [&](int, int) {
    static thread_local Buffer scratch_memory, tile_memory;
    const Scratch<Units> scratch(scratch_memory, tile_memory, task.head_dim);
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
