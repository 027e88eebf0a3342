// Items of attention on AMX tiles: the keys and values of a whole split are packed once for all query rows of the item,
// which go by in strips of two tiles.
#pragma once

#include "attention_block.h"
#include "attention_output.h"
#include "attention_tile_softmax.h"
#include "buffer.h"

namespace {

constexpr int kStripRows = 2 * kTileSide;
// Rows that share one packing of keys: as many as leave it 5 % of the time.
constexpr ItemRows kTiledRows = {512, kStripRows};
constexpr int kTileGroups = kTilePair / kLanes;  // groups of keys come in such numbers: whole tiles of values

// From row to row of scores: not a power of two, which would put all rows of a tile into a few places of the cache.
constexpr int64_t kScoreStride = kSplit + kLanes;

// Scratch memory of a thread for items on tiles, divided.
struct TileScratch {
  float *query, *scores, *keys, *values, *key_scales, *value_scales, *zeros, *strip_partial;

  TileScratch(Buffer& buffer, int head_dim) {
    const int64_t width = padded_dim<BF16Units>(head_dim), packed = kSplit * width / 2;
    const int64_t sizes[] = {kStripRows * width / 2, kStripRows * kScoreStride, packed, packed, kSplit, kSplit, width,
                             Partial::floats(kStripRows, width)};
    float** const parts[] = {&query,      &scores,       &keys,  &values,
                             &key_scales, &value_scales, &zeros, &strip_partial};
    int64_t total = 0;
    for (int64_t size : sizes) total += Partial::padded(size);
    float* memory = (float*)buffer.get(total * sizeof(float));
    int i = 0;
    for (float** part : parts) *part = memory, memory += Partial::padded(sizes[i++]);
    for (int64_t k = 0; k < width; ++k) zeros[k] = 0.f;
  }
};

// Packs what an item sees of a split, from a multiple of kKeys on.
void pack_split(const Task& task, const Item& item, int64_t split, const Item* follower, PackRows pack_keys,
                PackRows pack_values, const TileScratch& scratch) {
  const Span span = span_of(task, item, split);
  const int64_t begin = span.low / kKeys * kKeys, width = padded_dim<BF16Units>(task.head_dim);
  Block blocks[2];
  find_block<kTileGroups>(task, item, begin, span, scratch.zeros, blocks[0]);
  int turn = 0;
  for (int64_t position = begin; position < span.high; position += kKeys, turn ^= 1) {
    const Block &block = blocks[turn], &next = blocks[turn ^ 1];
    const bool more = find_next_block<kTileGroups>(task, item, split, span, position, follower, scratch.zeros,
                                                   blocks[turn ^ 1]);
    const int64_t first = position - begin + block.begin * kLanes;
    pack_keys(block.keys, more ? next.keys : nullptr, block.begin, block.end, task.head_dim,
              scratch.keys + first * width / 2);
    pack_values(block.values, more ? next.values : nullptr, block.begin, block.end, task.head_dim,
                scratch.values + first * width / 2);
    if (!task.key_scales) continue;
    gather_scales(task.key_scales, task, block, scratch.key_scales + position - begin);
    gather_scales(task.value_scales, task, block, scratch.value_scales + position - begin);
  }
}

// What the rows of a strip are.
struct Strip {
  alignas(64) int32_t positions[kStripRows];  // of a row that is padding: -1, which sees nothing
  float slopes[kStripRows];
};

// Packs a strip's queries.
void prepare_strip(const Task& task, const Item& rows, const TileScratch& scratch, Strip& strip) {
  const int64_t units = padded_dim<BF16Units>(task.head_dim) / 2;
  for (int r = rows.rows; r < kStripRows; ++r) strip.positions[r] = -1;
  for_each_row(task, rows.seq, rows.head, rows.row, rows.rows, [&](int r, int64_t token, int head, int64_t position) {
    const auto* from = (const uint16_t*)task.query + token * task.query_stride;
    pack_query<BF16Units, BF16>(from + static_cast<int64_t>(head) * task.head_dim, task.head_dim,
                                scratch.query + r * units);
    strip.positions[r] = static_cast<int32_t>(position);
    if (task.slopes) strip.slopes[r] = task.slopes[head];
  });
}

// Scores of a strip with `columns` keys from position `begin` on -> weights, largest scores and their sums. `skipped`:
// keys that are packed before these.
void weigh_strip(const Task& task, const Strip& strip, int num_rows, int64_t begin, int columns, int64_t skipped,
                 const TileScratch& scratch, const Partial& partial) {
  const bool adjusted = task.key_scales || task.slopes || task.rule.soft_cap != 0.f || !(task.rule.scale > 0.f);
  const int64_t window = task.window > 0 && task.window < INT32_MAX ? task.window : INT32_MAX;
  const __m512i all = _mm512_set1_epi32(columns), none = _mm512_setzero_si512();
  for (int row = 0; row < num_rows; row += kTileSide) {
    alignas(64) int32_t from[kTileSide], to[kTileSide];
    const __m512i end = _mm512_sub_epi32(_mm512_load_si512(strip.positions + row),
                                         _mm512_set1_epi32(static_cast<int32_t>(begin - 1)));
    const __m512i high = _mm512_min_epi32(end, all);
    const __m512i low = _mm512_max_epi32(_mm512_sub_epi32(end, _mm512_set1_epi32(static_cast<int32_t>(window))), none);
    _mm512_store_si512(from, low);
    _mm512_store_si512(to, high);
    const bool masked = _mm512_cmplt_epi32_mask(high, all) || _mm512_cmpgt_epi32_mask(low, none);
    const StripRows rows = {from, to, strip.positions + row, task.slopes ? strip.slopes + row : nullptr,
                            static_cast<int32_t>(begin)};
    (masked ? weigh_rows<true> : weigh_rows<false>)(
        scratch.scores + row * kScoreStride, kScoreStride, columns, rows, task.rule, adjusted,
        task.key_scales ? scratch.key_scales + skipped : nullptr,
        task.value_scales ? scratch.value_scales + skipped : nullptr, partial.largest + row, partial.total + row);
  }
}

// The partial sums of one split for a strip of an item's rows. `packed_from`: the first key that is packed.
void sum_strip(const Task& task, const Item& rows, int64_t split, int64_t packed_from, const TileScratch& scratch,
               const Partial& partial) {
  const int64_t width = padded_dim<BF16Units>(task.head_dim), parts = width / kTilePair;
  const Span span = span_of(task, rows, split);
  if (span.low >= span.high) {
    for (int r = 0; r < rows.rows; ++r) partial.largest[r] = kLowest, partial.total[r] = 0.f;
    for (int64_t i = 0; i < rows.rows * width; i += kLanes) store(partial.sums + i, zero());
    return;
  }
  const int64_t begin = span.low / kTilePair * kTilePair, skipped = begin - packed_from;
  const int columns = static_cast<int>((span.high - begin + kTilePair - 1) / kTilePair) * kTilePair;
  Strip strip;
  prepare_strip(task, rows, scratch, strip);
  const TileOperands keys = {(const char*)scratch.query, width * 2,
                             (const char*)(scratch.keys + skipped * width / 2), parts * kTileSize, kTileSize};
  tile_product(rows.rows, columns / kTileSide, keys, static_cast<int>(parts), scratch.scores, kScoreStride);
  weigh_strip(task, strip, rows.rows, begin, columns, skipped, scratch, partial);
  const TileOperands values = {(const char*)scratch.scores, kScoreStride * int64_t{sizeof(float)},
                               (const char*)(scratch.values + skipped * width / 2), kTileSize, width * kTileBytes};
  tile_product(rows.rows, static_cast<int>(width / kTileSide), values, columns / kTilePair, partial.sums, width);
}

// Adds one split of an item to its partial sums, or begins them with it.
void add_on_tiles(const Task& task, const Item& item, int64_t split, const Item* follower, PackRows pack_keys,
                  PackRows pack_values, const TileScratch& scratch, const Partial& into, bool begins) {
  const int width = padded_dim<BF16Units>(task.head_dim);
  const int64_t packed_from = span_of(task, item, split).low / kKeys * kKeys;
  const Partial next(scratch.strip_partial, kStripRows);
  pack_split(task, item, split, follower, pack_keys, pack_values, scratch);
  for (int row = 0; row < item.rows; row += kStripRows) {
    Item strip = item;
    strip.row += row;
    strip.rows = item.rows - row < kStripRows ? item.rows - row : kStripRows;
    const Partial own = into.from_row(row, width);
    sum_strip(task, strip, split, packed_from, scratch, begins ? own : next);
    if (!begins) fold(own, next, strip.rows, width);  // at once, while the sums are near
  }
}

}  // namespace
