// The one matrix kernel: a tile of rows times a packed panel of columns, summed in registers.
//
//   out[r][v] = sum over blocks b, k of  a[r * row_stride + b * block_stride + k] * panel[b][k][v]
//
// r < rows (at most best_rows), v < nv vectors. Strided a lets every product of the library use it: rows of x or h, and
// gate gradients in blocks of units (block_stride). A transposed matrix, as weight gradients have, is packed as
// [k][rows]. The result goes to a small buffer [rows][nv * width] that stays in L1; the caller's epilogue reads it from
// there.
#pragma once

#include "cpu/dot.h"

namespace fastrnn {
namespace FASTRNN_ISA {

constexpr int kMaxVectors = 4;  // columns of a panel
constexpr int kMaxRows = 8;

// Accumulators fill the registers but for the panel's vectors and one broadcast.
constexpr int fitting_rows(int vectors) {
  const int fit = (kRegisters * 3 / 4) / vectors;
  return fit < kMaxRows ? fit : kMaxRows;
}

// With 16 registers more rows than fit beside all of a panel take two of its vectors at a time: 6 rows of 2 read half
// as many of its bytes for a product as 3 rows of 4 do.
constexpr int kPair = 2;
// Of panels that many rows pass again and again: 4 rows of 3 have the fewest loads for 12 products, 7 rather than 8,
// but all registers are then taken, and without FMA a product needs one too. Where panels are packed for a single use,
// wider ones are quicker to pack.
constexpr int kPanelVectors = kRegisters == 32 ? kMaxVectors : kHasFma ? 3 : kPair;
constexpr int max_rows(int nv) { return fitting_rows(kRegisters < 32 && nv == 4 ? kPair : nv); }
constexpr int tile_vectors(int nv, int rows) { return rows <= fitting_rows(nv) ? nv : kPair; }

// Rows of a tile, no more than `most`, where `rows` are to be cut into even ones: fewer than 5 leave registers unused
// beside pairs.
constexpr int best_rows(int nv, int64_t rows, int most = kMaxRows) {
  const int large = int(min(max_rows(nv), most)), small = int(min(fitting_rows(nv), most));
  return large == small || rows >= (rows + large - 1) / large * 5 ? large : small;
}

template <class T>
struct Rows {
  using Element = T;
  static constexpr bool kTransposed = false;
  const T* data;
  int64_t row_stride;
  int64_t block_stride;

  static constexpr int most(int nv, int64_t rows) { return best_rows(nv, rows); }
  Rows tile(int64_t /*i*/, int64_t first, int64_t /*rows*/) const {
    return {data + first * row_stride, row_stride, block_stride};
  }
};

// Rows of a transposed matrix, copied into the order in which tiles read them: [tile][k][rows of the tile].
template <class T, int kMost>
struct PackedRows {
  using Element = T;
  static constexpr bool kTransposed = true;
  static_assert(kMost <= kWidth<T>, "pack_tiles copies them as one vector");
  const T* data;
  int64_t k_size;

  static constexpr int most(int /*nv*/, int64_t /*rows*/) { return kMost; }
  static int64_t tile_size(int64_t k_size) { return k_size * kMost + kWidth<T>; }  // what pack_tiles writes in excess
  static int64_t size(int64_t rows, int64_t k_size) { return (rows + kMost - 1) / kMost * tile_size(k_size); }
  Rows<T> tile(int64_t i, int64_t /*first*/, int64_t /*rows*/) const { return {data + i * tile_size(k_size), 1, 0}; }
};

// Columns of a product as rows of a row-major matrix: vector v is made of `valid` rows from row[v] on.
template <class T>
struct MatrixRows {
  const T* row[kMaxVectors];
  int64_t valid[kMaxVectors];
  int64_t stride;
};

// `count` rows of a matrix from `first` on.
template <class T>
FASTRNN_INLINE MatrixRows<T> matrix_rows(const T* first, int64_t stride, int64_t count) {
  constexpr int64_t w = kWidth<T>;
  MatrixRows<T> rows;
  rows.stride = stride;
  for (int64_t v = 0; v * w < count; v++) {
    rows.row[v] = first + v * w * stride;
    rows.valid[v] = min(w, count - v * w);
  }
  return rows;
}

template <class T>
struct Panel {
  const T* data;  // [k][nv][width]
  int nv;
  const T* next;  // the panel of this size to be used after it, or null: fetched into cache meanwhile
  const MatrixRows<T>* rows = nullptr;         // not packed: these, for a single block of a
  int64_t k_stride = int64_t(nv) * kWidth<T>;  // of data; not packed: that of a matrix with a row for every k
};

// What a tile fetches: a line now and then, or with few rows, where the panel goes by too fast, all of each k.
struct Ahead {
  const char* line;
  int64_t step;  // 0: nothing to fetch
};
constexpr int64_t kLine = 64;
constexpr bool fetches_whole_panel(int rows) { return rows < 4; }
// From one k that fetches to the next. Every k could, but an instruction is not free (see gemm_tile).
constexpr int fetch_period(int rows) { return fetches_whole_panel(rows) || kVectorBytes >= kLine ? 1 : 2; }
constexpr int kUnrolled = 4;  // k's

template <class T>
using TileFunction = void (*)(const Rows<T>& a, int64_t blocks, int64_t k_per_block, const T* panel,
                              int64_t panel_stride, bool add, Ahead ahead, T* out);

// kVectors of kOf vectors, from panel and out on. kPacked: panel_stride is that of a packed panel. kTransposed: a is
// [k][kRows]. The loop is all but loads and FMAs: a core that another thread shares has time for little else beside 2
// FMAs a cycle.
template <class T, int kRows, int kVectors, int kOf, bool kPacked, bool kTransposed>
__attribute__((noinline)) void gemm_tile(const Rows<T>& a, int64_t blocks, int64_t k_per_block, const T* panel,
                                         int64_t panel_stride, bool add, Ahead ahead, T* out) {
  constexpr int w = kWidth<T>;
  if (kPacked) panel_stride = kOf * w;
  // Fewer accumulators than an FMA's latency needs: sum every second or fourth k apart.
  constexpr int kStreams = kRows * kVectors >= 8 ? 1 : kRows * kVectors >= 4 ? 2 : 4;
  Vec<T> acc[kStreams][kRows][kVectors];
  FASTRNN_UNROLL
  for (int s = 0; s < kStreams; s++) {
    FASTRNN_UNROLL
    for (int r = 0; r < kRows; r++) {
      FASTRNN_UNROLL
      for (int v = 0; v < kVectors; v++) acc[s][r][v] = Vec<T>{};
    }
  }
  constexpr int64_t kStep = kTransposed ? kRows : 1;  // from k to k + 1
  const int64_t row_stride = kTransposed ? 1 : a.row_stride;
  for (int64_t b = 0; b < blocks; b++) {
    const T* row[kRows];
    FASTRNN_UNROLL
    for (int r = 0; r < kRows; r++) row[r] = a.data + b * a.block_stride + r * row_stride;
    const auto accumulate = [&](int s, int64_t k, const T* columns) __attribute__((always_inline)) {
      const auto element = [&](int r) __attribute__((always_inline)) { return set1(row[r][k * kStep]); };
      const auto column = [&](int v) __attribute__((always_inline)) { return load(columns + v * w); };
      // The fewer of both wait in registers: with the accumulators and one more they are all there are.
      if constexpr (kRows < kVectors) {
        Vec<T> x[kRows];
        FASTRNN_UNROLL
        for (int r = 0; r < kRows; r++) x[r] = element(r);
        FASTRNN_UNROLL
        for (int v = 0; v < kVectors; v++) {
          const Vec<T> y = column(v);
          FASTRNN_UNROLL
          for (int r = 0; r < kRows; r++) multiply_add<T>(acc[s][r][v], x[r], y);
        }
      } else {
        Vec<T> y[kVectors];
        FASTRNN_UNROLL
        for (int v = 0; v < kVectors; v++) y[v] = column(v);
        FASTRNN_UNROLL
        for (int r = 0; r < kRows; r++) {
          const Vec<T> x = element(r);
          FASTRNN_UNROLL
          for (int v = 0; v < kVectors; v++) multiply_add<T>(acc[s][r][v], x, y[v]);
        }
      }
    };
    int64_t k = 0;
    for (; k + kUnrolled <= k_per_block; k += kUnrolled, panel += kUnrolled * panel_stride) {
      FASTRNN_UNROLL
      for (int i = 0; i < kUnrolled; i++) {
        if (i % fetch_period(kRows) == 0) {
          constexpr int lines = fetches_whole_panel(kRows) ? (kVectors * kVectorBytes + kLine - 1) / kLine : 1;
          FASTRNN_UNROLL
          for (int j = 0; j < lines; j++) __builtin_prefetch(ahead.line + j * kLine, 0, 2);
          ahead.line += ahead.step;
        }
        accumulate(i % kStreams, k + i, panel + i * panel_stride);
      }
    }
    for (; k < k_per_block; k++, panel += panel_stride) accumulate(0, k, panel);
  }
  FASTRNN_UNROLL
  for (int r = 0; r < kRows; r++) {
    FASTRNN_UNROLL
    for (int v = 0; v < kVectors; v++) {
      Vec<T> sum = acc[0][r][v];
      FASTRNN_UNROLL
      for (int s = 1; s < kStreams; s++) sum += acc[s][r][v];
      if (add) sum += load(out + (r * kOf + v) * w);
      store(out + (r * kOf + v) * w, sum);
    }
  }
}

template <class T, int kVectors, int kOf, bool kPacked, bool kTransposed, int kRows>
constexpr TileFunction<T> tile_or_null() {
  constexpr bool in_pairs = kRegisters < 32 && kOf > kPair && kRows > fitting_rows(kOf);
  if constexpr (kVectors == kOf ? kRows <= fitting_rows(kOf)
                                : in_pairs && kVectors <= kPair && kRows <= fitting_rows(kPair)) {
    return &gemm_tile<T, kRows, kVectors, kOf, kPacked, kTransposed>;
  } else {
    return nullptr;
  }
}

template <class T, int kVectors, int kOf, bool kPacked, bool kTransposed>
struct TileTable {
  static constexpr TileFunction<T> kByRows[kMaxRows + 1] = {
      nullptr,
      tile_or_null<T, kVectors, kOf, kPacked, kTransposed, 1>(),
      tile_or_null<T, kVectors, kOf, kPacked, kTransposed, 2>(),
      tile_or_null<T, kVectors, kOf, kPacked, kTransposed, 3>(),
      tile_or_null<T, kVectors, kOf, kPacked, kTransposed, 4>(),
      tile_or_null<T, kVectors, kOf, kPacked, kTransposed, 5>(),
      tile_or_null<T, kVectors, kOf, kPacked, kTransposed, 6>(),
      tile_or_null<T, kVectors, kOf, kPacked, kTransposed, 7>(),
      tile_or_null<T, kVectors, kOf, kPacked, kTransposed, 8>(),
  };
};

// [nv of the panel][vectors of the tile][rows of the tile]
template <class T, bool kPacked, bool kTransposed>
constexpr const TileFunction<T>* kTiles[kMaxVectors + 1][kMaxVectors + 1] = {
    {},
    {nullptr, TileTable<T, 1, 1, kPacked, kTransposed>::kByRows},
    {nullptr, nullptr, TileTable<T, 2, 2, kPacked, kTransposed>::kByRows},
    {nullptr, TileTable<T, 1, 3, kPacked, kTransposed>::kByRows, TileTable<T, 2, 3, kPacked, kTransposed>::kByRows,
     TileTable<T, 3, 3, kPacked, kTransposed>::kByRows},
    {nullptr, nullptr, TileTable<T, 2, 4, kPacked, kTransposed>::kByRows, nullptr,
     TileTable<T, 4, 4, kPacked, kTransposed>::kByRows}};

// Numbers of a group of tiles: some dozen of 4 rows, or 8 of any size.
template <class T>
constexpr int64_t kGroupSize = 8 * kMaxRows * kMaxVectors * kWidth<T>;
template <class T>
struct alignas(64) TileBuffer {
  T data[kGroupSize<T>];
};
// What a group of tiles shares: most of a first-level cache of 32 KiB.
constexpr int64_t kPartBytes = 25 << 10;

// One chain of additions is no longer than this: rounding errors grow with its length.
constexpr int64_t kChain = 256;

// a / b, for 0 <= a and 0 < b. A 32-bit division takes a fraction of a 64-bit one's time, and small products are many.
FASTRNN_INLINE int64_t divide(int64_t a, int64_t b) {
  return uint64_t(a | b) >> 32 ? a / b : int64_t(uint32_t(a) / uint32_t(b));
}

// n things cut into parts of even size, larger ones first: 20 rows in tiles of up to 6 are 4 x 5, not 3 x 6 + 2.
struct EvenParts {
  EvenParts(int64_t n, int64_t most)
      : count(divide(n + most - 1, most)), least(count ? divide(n, count) : 0), larger(n - least * count) {}
  int64_t size(int64_t i) const { return least + (i < larger); }
  int64_t count, least, larger;  // `larger` of them have one more than the least
};

// A tile as TileFunction gives it, of columns that are not packed.
template <class T>
FASTRNN_INLINE void multiply_rows(const Rows<T>& a, int64_t rows, int64_t k_size, const MatrixRows<T>& columns, int nv,
                                  T* out) {
  constexpr int64_t w = kWidth<T>, most = kChain / 4 * w;  // each lane sums one in w
  for (int64_t k = 0; k < k_size; k += most) {
    for (int v = 0; v < nv; v++) {
      kDots<T>[rows](a.data + k, a.row_stride, columns.row[v] + k, columns.stride, columns.valid[v],
                     min(most, k_size - k), k > 0, out + v* w, nv* w);
    }
  }
}

// Multiplies `rows` rows (any number) by one panel, tile by tile, each summed in such chains:
// epilogue(first_row, tile_rows, tile [tile_rows][nv * width]).
//
// A long panel is read in parts, of which each stays in the first-level cache while a group of tiles passes it.
template <class A, class Epilogue, class T = typename A::Element>
FASTRNN_INLINE void gemm(const A& a, int64_t rows, int64_t blocks, int64_t k_per_block, const Panel<T>& panel,
                         Epilogue&& epilogue) {
  const int nv = panel.nv;
  const bool packed = A::kTransposed || panel.k_stride == int64_t(nv) * kWidth<T>;
  const int64_t pieces = (k_per_block + kChain - 1) / kChain, k_step = divide(k_per_block + pieces - 1, pieces);
  const int64_t b_step = blocks == 1 ? 1 : max(1, divide(kChain, k_per_block));
  const EvenParts tiles(rows, panel.rows ? kMaxDotRows : a.most(nv, rows));
  // A single tile reads panel after panel as one stream, which the processor fetches by itself.
  const char *next = tiles.count > 1 ? reinterpret_cast<const char*>(panel.next) : nullptr,
             *next_end = next + blocks * k_per_block * nv * kVectorBytes;
  TileBuffer<T> buffer;
  for (int64_t i = 0, first = 0, group; i < tiles.count; i += group) {
    const int64_t n = tiles.size(i), size = n * nv * kWidth<T>;
    const int vectors = tile_vectors(nv, int(n));
    const int64_t part_bytes = min(b_step, blocks) * k_step * vectors * kVectorBytes;
    const int64_t alike = (i < tiles.larger ? tiles.larger : tiles.count) - i;
    group = part_bytes > kPartBytes || panel.rows ? 1 : min(alike, kGroupSize<T> / size);
    if (panel.rows) multiply_rows(a.tile(i, first, n), n, k_per_block, *panel.rows, nv, buffer.data);
    const T* columns = panel.data;
    for (int64_t b = 0; b < blocks && !panel.rows; b += b_step) {
      const int64_t nb = min(b_step, blocks - b);
      for (int64_t k = 0; k < k_per_block; k += k_step) {
        const int64_t nk = min(k_step, k_per_block - k);
        for (int v = 0; v < nv; v += vectors) {
          const auto& of_nv = (packed ? kTiles<T, true, A::kTransposed> : kTiles<T, false, false>)[nv];
          const TileFunction<T> multiply = of_nv[min(vectors, nv - v)][n];
          for (int64_t g = 0; g < group; g++) {
            const Rows<T> tile = a.tile(i + g, first + g * n, n);
            const T* from = tile.data + b * tile.block_stride + k * (A::kTransposed ? n : 1);
            const bool fetches = next && next < next_end;
            const int64_t step = !fetches ? 0 : fetches_whole_panel(int(n)) ? nv * kVectorBytes : kLine;
            multiply({from, tile.row_stride, tile.block_stride}, nb, nk, columns + v * kWidth<T>, panel.k_stride,
                     b + k > 0, Ahead{fetches ? next : reinterpret_cast<const char*>(from), step},
                     buffer.data + g * size + v * kWidth<T>);
            next += nb * nk * step / fetch_period(int(n));
          }
        }
        columns += nb * nk * panel.k_stride;
      }
    }
    for (const T* tile = buffer.data; tile < buffer.data + group * size; tile += size, first += n) {
      epilogue(first, n, tile);
    }
  }
}

// A panel that should stay in the second-level cache while the rows pass.
constexpr int64_t kPanelBytes = 160 << 10;

// Which part of the sums a tile of gemm_in_pieces holds.
struct Piece {
  bool first, last;
};

// The same for a panel of any length, cut into such pieces: epilogue(piece, first_row, tile_rows, tile) is called for
// every row of a piece before the next one is begun. Many blocks are cut between blocks, a single one within.
template <class T, class Epilogue>
FASTRNN_INLINE void gemm_in_pieces(const Rows<T>& a, int64_t rows, int64_t blocks, int64_t k_per_block,
                                   const Panel<T>& panel, Epilogue&& epilogue) {
  const bool within = blocks == 1;
  const int64_t parts = within ? k_per_block : blocks, part_k = within ? 1 : k_per_block;
  const int64_t part_stride = within ? 1 : a.block_stride, part_size = part_k * panel.nv * kWidth<T>;
  if (panel.rows || rows <= kMaxRows || parts * part_size * int64_t(sizeof(T)) <= kPanelBytes) {
    return gemm(a, rows, blocks, k_per_block, panel,
                [&](int64_t first, int64_t count, const T* tile) { epilogue(Piece{true, true}, first, count, tile); });
  }
  const int64_t most = max(1, kPanelBytes / (part_size * int64_t(sizeof(T)))), pieces = (parts + most - 1) / most;
  for (int64_t i = 0; i < pieces; i++) {
    const int64_t begin = parts * i / pieces, end = parts * (i + 1) / pieces, n = end - begin;
    const T* next = i + 1 < pieces ? panel.data + end * part_size : panel.next;
    gemm(Rows<T>{a.data + begin * part_stride, a.row_stride, a.block_stride}, rows, within ? 1 : n,
         within ? n : k_per_block, {panel.data + begin * part_size, panel.nv, next},
         [&](int64_t first, int64_t count, const T* tile) {
           epilogue(Piece{i == 0, i + 1 == pieces}, first, count, tile);
         });
  }
}

// ---- packing

// Row k of a transposed matrix, one number for each of its rows, as part of PackedRows. Reads a vector beyond it.
template <int kMost, class T>
FASTRNN_INLINE void pack_tile_row(const T* from, int64_t k, int64_t k_size, const EvenParts& tiles, T* packed) {
  const int64_t tile_size = PackedRows<T, kMost>::tile_size(k_size);
  // Whole vectors: what is too much of one is overwritten by the next k.
  const auto copy = [&](int64_t count, int64_t n) {
    for (int64_t i = 0; i < count; i++, from += n, packed += tile_size) store(packed + k * n, load(from));
  };
  copy(tiles.larger, tiles.least + 1);
  copy(tiles.count - tiles.larger, tiles.least);
}

// Rows r of a matrix whose element (r, k) stands at source[r + k * k_stride], as PackedRows. Reads a vector beyond it.
template <int kMost, class T>
void pack_tiles(const T* source, int64_t k_stride, int64_t rows, int64_t k_size, T* packed) {
  const EvenParts tiles(rows, kMost);
  for (int64_t k = 0; k < k_size; k++) pack_tile_row<kMost>(source + k * k_stride, k, k_size, tiles, packed);
}

// Vector `v` of a packed panel [k][nv][width] takes `valid` consecutive rows of a row-major matrix, transposed.
template <class T>
void pack_transposed(const T* rows, int64_t row_stride, int64_t valid, int64_t k_size, int nv, int v, T* panel) {
  constexpr int w = kWidth<T>;
  for (int64_t k = 0; k < k_size; k += w) {
    const int64_t n = min(w, k_size - k);
    Vec<T> square[w];
    for (int64_t i = 0; i < w; i++) {
      square[i] = i < valid ? load_first(rows + i * row_stride + k, n) : Vec<T>{};
    }
    transpose<T>(square);
    for (int64_t i = 0; i < n; i++) store(panel + ((k + i) * nv + v) * w, square[i]);
  }
}

template <class T>
void pack_transposed(const MatrixRows<T>& rows, int64_t k_size, int nv, T* panel) {
  for (int v = 0; v < nv; v++) pack_transposed(rows.row[v], rows.stride, rows.valid[v], k_size, nv, v, panel);
}

// Row k of a packed panel [k][nv][width]: `columns` (<= nv * width) numbers, zero-padded.
template <class T>
FASTRNN_INLINE void pack_row(const T* source, int64_t columns, int nv, T* row) {
  constexpr int w = kWidth<T>;
  for (int v = 0; v < nv; v++) {
    store(row + v * w, v * w < columns ? load_first(source + v * w, min(w, columns - v * w)) : Vec<T>{});
  }
}

// A row of a tile joins, or becomes, `columns` numbers of a matrix.
template <class T>
FASTRNN_INLINE void add_row(const T* tile, int nv, int64_t columns, T* out) {
  constexpr int w = kWidth<T>;
  for (int v = 0; v < nv; v++) {
    const int64_t valid = min(w, columns - v * w);
    store_first(out + v * w, load_first(out + v * w, valid) + load(tile + v * w), valid);
  }
}
template <class T>
FASTRNN_INLINE void put_row(const T* tile, int nv, int64_t columns, T* out) {
  constexpr int w = kWidth<T>;
  for (int v = 0; v < nv; v++) store_first(out + v * w, load(tile + v * w), min(w, columns - v * w));
}
template <class T>
FASTRNN_INLINE void add_or_put_row(bool add, const T* tile, int nv, int64_t columns, T* out) {
  add ? add_row(tile, nv, columns, out) : put_row(tile, nv, columns, out);
}

// Columns 0..n of a matrix in panels of up to `most` vectors, of even width: 13 vectors in panels of 4 are 4 + 3 + 3 +
// 3, not 4 + 4 + 4 and a panel of one, whose tiles are slow.
template <class T>
struct ColumnPanels {
  explicit ColumnPanels(int64_t n, int most = kMaxVectors) : n(n), parts((n + kWidth<T> - 1) / kWidth<T>, most) {}
  int64_t vectors() const { return parts.least * parts.count + parts.larger; }
  int64_t count() const { return parts.count; }
  int64_t first_vector(int64_t j) const { return j * parts.least + min(j, parts.larger); }
  int64_t first_column(int64_t j) const { return first_vector(j) * kWidth<T>; }
  int nv(int64_t j) const { return int(parts.size(j)); }
  int64_t columns(int64_t j) const { return min(n - first_column(j), int64_t(nv(j)) * kWidth<T>); }
  int64_t offset(int64_t j, int64_t k_size) const { return first_column(j) * k_size; }  // of panel j in packed data

  int64_t n;
  EvenParts parts;
};

}  // namespace FASTRNN_ISA
}  // namespace fastrnn
