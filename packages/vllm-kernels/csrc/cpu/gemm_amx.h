// bf16 products on AMX tiles: 1,024 sums at a time, in four tiles.
//
// What a dot of tiles waits for is its operands: a tile comes from the first cache in 8 cycles and from the second in 18,
// and a dot takes 16 (20 at the power that real numbers take). Where a panel fits into the first cache, it stays there
// while rows pass by, 16 at a time, and one load of five comes from the second. Where it does not, 32 rows by half a
// panel take four loads for four dots. Storing sums and loading them again for the next part of K costs more than either.
#pragma once

#include "gemm.h"
#include "tile.h"

namespace {

constexpr int64_t kAmxRows = 256;      // rows at a time: they stay in the second cache; half as many where K is long
constexpr int64_t kPartTiles = 64;     // tiles along K in a part, so that no chain of sums is too long
constexpr int64_t kNarrowTiles = 8;    // tiles along K of a panel that stays in the first cache: 32 KiB
constexpr int64_t kNearWeights = 1 << 20;  // bytes that stay in the second cache from one of those rows to the next
constexpr int64_t kAheadOnce = 8192;   // bytes that a panel's only tile of rows fetches ahead
constexpr int64_t kTileWeights = kTileSide * kStepBytes;  // bytes of a panel for a tile's 32 of K

// Rows of activations as tiles read them: where they are, if the next row is so near that 16 of them do not meet in a
// few sets of the first cache, else copied to [rows / 16][k / 32][16][32]. A tile that lacks rows is copied, too: rows
// and columns that are not there are zeros.
class RowTiles {
 public:
  struct Tile {
    const uint8_t* data;
    int64_t row_stride, step;  // bytes to the next row, and to the tile of the next 32 columns
  };

  RowTiles(const Problem& problem, int64_t row, int64_t rows, Buffer& buffer)
      : x_((const uint16_t*)problem.x + row * problem.stride),
        stride_(problem.stride),
        rows_(rows),
        k_(problem.weight->k) {
    const int64_t whole = rows / kTileSide, all = round_up(rows, kTileSide) / kTileSide;
    in_place_ = k_ % kPaddedK == 0 && stride_ * 2 <= kNearRows ? whole : 0;
    copies_ = (const uint8_t*)buffer.get((all - in_place_) * tile_bytes());
    for (int64_t tile = in_place_; tile < all; ++tile) copy(tile);
  }

  Tile tile(int64_t t) const {
    if (t < in_place_) return {(const uint8_t*)(x_ + t * kTileSide * stride_), stride_ * 2, kTileBytes};
    return {copies_ + (t - in_place_) * tile_bytes(), kTileBytes, kTileSize};
  }

 private:
  static constexpr int64_t kNearRows = 1024;  // bytes

  int64_t tile_bytes() const { return round_up(k_, kPaddedK) / kPaddedK * kTileSize; }

  void copy(int64_t tile) {
    uint8_t* to = const_cast<uint8_t*>(copies_) + (tile - in_place_) * tile_bytes();
    for (int r = 0; r < kTileSide; ++r) {
      const int64_t row = tile * kTileSide + r, there = row < rows_ ? k_ : 0;
      for (int64_t k = 0; k < k_; k += kPaddedK) {
        const int64_t left = there - k;
        __m512i columns;
        if (left >= kPaddedK)
          columns = _mm512_loadu_si512(x_ + row * stride_ + k);
        else if (left > 0)
          columns = _mm512_maskz_loadu_epi16(static_cast<__mmask32>((1ull << left) - 1), x_ + row * stride_ + k);
        else
          columns = _mm512_setzero_si512();
        _mm512_storeu_si512(to + k / kPaddedK * kTileSize + r * kTileBytes, columns);
      }
    }
  }

  const uint16_t* x_;
  int64_t stride_, rows_, k_, in_place_;
  const uint8_t* copies_;
};

// What most products do with their sums, and whatever else there is.
enum class Form { plain, residual, silu, any };

inline Form form_of(const Problem& problem) {
  const Output& out = problem.out;
  const bool gated = out.gate != Gate::none;
  const bool whole = out.columns % (gated ? kHalfPanel : kPanel) == 0 && problem.weight->k <= kPartTiles * kPaddedK;
  if (!whole || out.bias || out.out_dtype != DType::bf16) return Form::any;
  if (gated) return out.gate == Gate::silu && !out.residual ? Form::silu : Form::any;
  return out.residual ? Form::residual : Form::plain;
}

// x sigmoid(x) within 1e-5 of itself, which is then rounded four hundred times more roughly. The exact one takes the
// units that are awake beside those of the tiles for longer than the dots do.
inline Vec quick_silu(Vec x) {
  const Vec y = x * splat(-1.44269504f);
  // 2^y: minimax of the relative error on [0, 1] of the polynomials that are exact at both ends.
  const Vec f = {_mm512_reduce_ps(y.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)};  // y less the whole number below
  Vec p = splat(0.0135557472f);
  p = fma(p, f, splat(0.0520323690f));
  p = fma(p, f, splat(0.2413797629f));
  p = fma(p, f, splat(0.6930321208f));
  p = fma(p, f, splat(1.f));
  return x / (splat(1.f) + Vec{_mm512_scalef_ps(p.v, y.v)});
}

// Sums that wait for what is left to do: those of several parts of some rows, to be added up and written out.
struct Waiting {
  const Output* out = nullptr;
  float* c;               // [16 or 32, 64] of the first part
  int64_t distance, more;  // floats from part to part; parts behind the first
  int64_t row, panel;
  int rows, done;  // rows there are, 0 to 32; rows that need nothing more
  int turn;        // 0 and 1, by turns
};

// Does it: two rows at a time between the dots of the next rows, which keep only the tile unit busy. For most forms all
// that this needs stays in registers while a block is computed.
template <Form form>
class Finisher {
 public:
  explicit Finisher(Waiting& waiting) : waiting_(waiting), left_(waiting.rows - waiting.done) {
    if (form == Form::any || left_ <= 0) return;
    const Output& out = *waiting.out;
    const int64_t row = waiting.row + waiting.done, column = waiting.panel * kWidth;
    from_ = waiting.c + waiting.done * kPanel;
    to_ = (uint16_t*)out.data + row * out.columns + column;
    columns_ = out.columns;
    streamed_ = out.streamed;
    if constexpr (form != Form::residual) return;
    residual_ = (const uint16_t*)out.residual + row * out.residual_stride + column;
    residual_stride_ = out.residual_stride;
  }
  ~Finisher() { waiting_.done = waiting_.rows - left_; }

  void some() {
    if (left_ <= 0) return;
    if constexpr (form == Form::any) return any();
    one();
    if (left_ > 0) one();
  }
  void all() {
    while (left_ > 0) some();
  }

 private:
  static constexpr int kWidth = form == Form::silu ? kHalfPanel : kPanel;

  void one() {
    for (int i = 0; i < kWidth; i += 2 * kLanes) {
      const Vec a = value(i), b = value(i + kLanes);
      if (streamed_)
        stream_bf16(to_ + i, a, b);
      else
        store_bf16(to_ + i, a, b);
    }
    --left_, from_ += kPanel, to_ += columns_, residual_ += residual_stride_;
  }

  Vec value(int i) const {
    if constexpr (form == Form::silu) return quick_silu(load(from_ + i)) * load(from_ + kHalfPanel + i);
    return form == Form::residual ? load(from_ + i) + load_bf16(residual_ + i) : load(from_ + i);
  }

  void any() {
    const int count = left_ < 2 ? left_ : 2, done = waiting_.rows - left_;
    float* first = waiting_.c + done * kPanel;
    add_parts(first, count, waiting_.distance, waiting_.more);
    finish(*waiting_.out, first, count, waiting_.row + done, waiting_.panel);
    left_ -= count;
  }

  // c [rows, 64] += the sums of `more` parts, the first of which stands `distance` floats behind it.
  static void add_parts(float* c, int64_t rows, int64_t distance, int64_t more) {
    if (!more) return;
    for (int64_t i = 0; i < rows * kPanel; i += kLanes) {
      Vec sum = load(c + i);
      for (int64_t part = 1; part <= more; ++part) sum = sum + load(c + part * distance + i);
      store(c + i, sum);
    }
  }

  Waiting& waiting_;
  int left_;
  const float* from_ = nullptr;
  uint16_t* to_ = nullptr;
  const uint16_t* residual_ = nullptr;
  int64_t columns_ = 0, residual_stride_ = 0;
  bool streamed_ = false;
};

// What a block fetches on its way, a number of lines with each step along K.
struct Ahead {
  const uint8_t* from;
  int lines;
  bool once;  // by the panel's only tile of rows: its weights come to the first cache shortly before they are needed

  void fetch() {
    for (int line = 0; line < lines; ++line, from += 64)
      if (once)
        _mm_prefetch((const char*)from, _MM_HINT_T0);
      else
        _mm_prefetch((const char*)from, _MM_HINT_T1);
  }
};

// c [16, 64] = a tile of rows and its `tiles - 1` neighbours along K, by a panel from b on.
template <Form form>
inline void one_by_four(RowTiles::Tile a, const uint8_t* b, int64_t tiles, float* c, Ahead ahead, Waiting& waiting) {
  Finisher<form> finisher(waiting);
  constexpr int64_t kRow = kPanel * sizeof(float);
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  tile_zero<3>();
  for (int64_t i = 0; i < tiles; ++i, a.data += a.step, b += kTileWeights) {
    ahead.fetch();
    tile_load<4>(a.data, a.row_stride);
    tile_load<5>(b, kStepBytes);
    tile_dot_bf16<0, 4, 5>();
    tile_load<6>(b + kTileBytes, kStepBytes);
    tile_dot_bf16<1, 4, 6>();
    tile_load<7>(b + 2 * kTileBytes, kStepBytes);
    tile_dot_bf16<2, 4, 7>();
    tile_load<5>(b + 3 * kTileBytes, kStepBytes);
    tile_dot_bf16<3, 4, 5>();
    finisher.some();
  }
  tile_store<0>(c, kRow);
  tile_store<1>(c + kTileSide, kRow);
  tile_store<2>(c + 2 * kTileSide, kRow);
  tile_store<3>(c + 3 * kTileSide, kRow);
}

// c [32, 32 of 64] = two tiles of rows and their neighbours along K, by half a panel from b on.
template <Form form>
inline void two_by_two(RowTiles::Tile a, RowTiles::Tile below, const uint8_t* b, int64_t tiles, float* c, Ahead ahead,
                       Waiting& waiting) {
  Finisher<form> finisher(waiting);
  constexpr int64_t kRow = kPanel * sizeof(float), kDown = kTileSide * kPanel;
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  tile_zero<3>();
  for (int64_t i = 0; i < tiles; ++i, a.data += a.step, below.data += below.step, b += kTileWeights) {
    ahead.fetch();
    tile_load<6>(b, kStepBytes);
    tile_load<4>(a.data, a.row_stride);
    tile_dot_bf16<0, 4, 6>();
    tile_load<7>(b + kTileBytes, kStepBytes);
    tile_dot_bf16<1, 4, 7>();
    tile_load<5>(below.data, below.row_stride);
    tile_dot_bf16<2, 5, 6>();
    tile_dot_bf16<3, 5, 7>();
    finisher.some();
  }
  tile_store<0>(c, kRow);
  tile_store<1>(c + kTileSide, kRow);
  tile_store<2>(c + kDown, kRow);
  tile_store<3>(c + kDown + kTileSide, kRow);
}

// Rows [row, row + rows) by one panel. sums: [16 * tiles of rows, 64] for each part of K, and no less than [64, 64]. What
// waits at the end is done with the next panel.
template <Form form>
inline void multiply_panel_amx(const Problem& problem, const RowTiles& a, int64_t row, int64_t rows, int64_t panel,
                               float* sums, bool is_near, Waiting& waiting) {
  const Weight& w = *problem.weight;
  const int64_t across = round_up(w.k, kPaddedK) / kPaddedK, down = round_up(rows, kTileSide) / kTileSide;
  const int64_t parts = (across + kPartTiles - 1) / kPartTiles;
  const int64_t of_tile = kTileSide * kPanel, distance = down * of_tile;
  const uint8_t* b = w.data + panel * panel_bytes(w);
  // Several tiles of rows together fetch the part that follows, unless it is in the second cache anyway.
  const int lines = is_near ? 0 : static_cast<int>((kTileWeights / 64 + down - 1) / down);
  const bool narrow = across <= kNarrowTiles;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t first = part * kPartTiles, left = across - first, tiles = left < kPartTiles ? left : kPartTiles;
    const uint8_t* entries = b + first * kTileWeights;
    Ahead ahead = {down == 1 ? entries + kAheadOnce : entries + tiles * kTileWeights, lines, down == 1};
    for (int64_t t = 0, taken; t < down; t += taken) {
      taken = narrow || t + 1 == down ? 1 : 2;
      // The sums of a single part take turns in two places, which stay in the first cache.
      float* c = sums + (parts == 1 ? waiting.turn * 2 : t) * of_tile;
      if (waiting.c == c) Finisher<form>(waiting).all();
      const auto tile = [&](int64_t index) {
        RowTiles::Tile found = a.tile(index);
        found.data += first * found.step;
        return found;
      };
      const int64_t fetched = tiles * lines * 64;
      if (taken == 1) {
        one_by_four<form>(tile(t), entries, tiles, c + part * distance, ahead, waiting);
        ahead.from += fetched;
      } else {
        for (int half = 0; half < 2; ++half, ahead.from += fetched)
          two_by_two<form>(tile(t), tile(t + 1), entries + half * 2 * kTileBytes, tiles,
                           c + part * distance + half * kHalfPanel, ahead, waiting);
      }
      if (part + 1 < parts) continue;
      Finisher<form>(waiting).all();
      const int64_t begin = t * kTileSide, most = taken * kTileSide, count = rows - begin < most ? rows - begin : most;
      waiting = {&problem.out, c, distance, part, row + begin, panel, static_cast<int>(count), 0, waiting.turn ^ 1};
    }
  }
}

template <Form form>
inline void multiply_share_amx(const Problem& problem, const Share& share) {
  static thread_local Buffer copies, sums;
  const int64_t most = problem.weight->k > kPartTiles * kPaddedK ? kAmxRows / 2 : kAmxRows;
  const bool few = (share.panels.end - share.panels.begin) * panel_bytes(*problem.weight) <= kNearWeights;
  tiles_begin();
  for (int64_t row = share.rows.begin; row < share.rows.end; row += most) {
    const int64_t left = share.rows.end - row, rows = left < most ? left : most;
    const RowTiles a(problem, row, rows, copies);
    const int64_t floats = round_up(rows, kTileSide) * kPanel;
    const int64_t parts = (problem.weight->k + kPartTiles * kPaddedK - 1) / (kPartTiles * kPaddedK);
    float* c = (float*)sums.get((parts * floats + 4 * kTileSide * kPanel) * sizeof(float));
    Waiting waiting = {};
    for (int64_t panel = share.panels.begin; panel < share.panels.end; ++panel)
      multiply_panel_amx<form>(problem, a, row, rows, panel, c, row > share.rows.begin && few, waiting);
    Finisher<form>(waiting).all();
  }
  tiles_end();
}

// The whole product. A result does not depend on the number of rows.
inline void multiply_amx(const Problem& problem, int threads) {
  const auto multiply = [&](auto form) {
    share_product(problem, threads, kAmxRows / 2,
                  [&](const Share& share) { multiply_share_amx<decltype(form)::value>(problem, share); });
  };
  switch (form_of(problem)) {
    case Form::plain: return multiply(std::integral_constant<Form, Form::plain>());
    case Form::residual: return multiply(std::integral_constant<Form, Form::residual>());
    case Form::silu: return multiply(std::integral_constant<Form, Form::silu>());
    default: return multiply(std::integral_constant<Form, Form::any>());
  }
}

}  // namespace
