// What the forward and the backward kernel of a layer share: the cell's geometry, the walk over time, the rows of
// h_{t-1}.
#pragma once

#include "cpu/gemm.h"
#include "cpu/kernels.h"
#include "cpu/math.h"
#include "cpu/threads.h"

namespace fastrnn {
namespace FASTRNN_ISA {

// Slots that W_ih and W_hh feed; a slot in both holds the sum of the two.
template <class Cell>
struct Geometry {
  static_assert(Cell::kGates <= kMaxVectors, "all gates of a unit share a tile");
  static constexpr int kSlots = Cell::kSlots;
  static constexpr int kXSlots = Cell::kGates, kHSlots = Cell::kGates;
  // Unit blocks to a tile, so that it is about four vectors wide whatever the cell.
  static constexpr int kUnits = kMaxVectors / Cell::kGates > 1 ? kMaxVectors / Cell::kGates : 1;
  static constexpr bool from_x(int slot) { return slot >= Cell::kXSlot && slot < Cell::kXSlot + kXSlots; }
  static constexpr bool from_h(int slot) { return slot >= Cell::kHSlot && slot < Cell::kHSlot + kHSlots; }
};

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

FASTRNN_INLINE Range share(int64_t n, const Team& team, int tid) {
  return {share_begin(n, tid, team.size()), share_begin(n, tid + 1, team.size())};
}

// Order of time steps: forward, or backward for the reverse direction (and the other way round for gradients).
struct Walk {
  bool descending;
  int64_t n;
  int64_t operator[](int64_t i) const { return descending ? n - 1 - i : i; }
};

// The step whose h step t takes, in the direction of the layer; -1: the initial state.
FASTRNN_INLINE int64_t step_before(const LayerArgs& a, int64_t t) {
  return a.reverse ? (t + 1 < a.steps.seq_len ? t + 1 : -1) : t - 1;
}

// The rows of one step that take h_{t-1} and c_{t-1} from one place: from the step before, or from the initial state
// (all rows at the first step; in the reverse direction also rows that start later, at their own end).
template <class T>
struct Source {
  Range rows;
  const T* h;  // of row rows.begin
  int64_t h_stride;
  int64_t cell_row;  // in the block [cell_rows] of cells, of row rows.begin

  // Leaves only rows within `range`.
  void keep(Range range) {
    const int64_t skipped = max(0, min(range.begin, rows.end) - rows.begin);
    h += skipped * h_stride;
    cell_row += skipped;
    rows.begin += skipped;
    rows.end = max(rows.begin, min(range.end, rows.end));
  }
};

// Row of LayerArgs::h_prev where step t begins: backward needs every step's, inference the last two.
FASTRNN_INLINE int64_t h_prev_row(const Steps& s, bool all_kept, int64_t t) {
  return all_kept ? s.offset[t] : (t & 1) * s.batch;
}

// Sources of step t when `before` is the step processed before it (-1: none). Returns how many.
template <class T>
FASTRNN_INLINE int sources(const LayerArgs& a, const T* y, int64_t y_stride, bool all_kept, int64_t t, int64_t before,
                           Source<T>* out) {
  const Steps& s = a.steps;
  const int64_t n = s.count[t], carried = before < 0 ? 0 : min(n, s.count[before]);
  int found = 0;
  if (carried > 0) {
    out[found++] = {{0, carried}, y + s.offset[before] * y_stride, y_stride, all_kept ? s.batch + s.offset[before] : 0};
  }
  if (carried < n) {
    out[found++] = {{carried, n}, static_cast<const T*>(a.h_0) + carried * a.state_size, a.state_size, carried};
  }
  if (a.resets) {  // h_{t-1} stands in a copy of its own, zeroed where reset
    for (int i = 0; i < found; i++) {
      out[i].h = static_cast<const T*>(a.h_prev) + (h_prev_row(s, all_kept, t) + out[i].rows.begin) * a.state_size;
      out[i].h_stride = a.state_size;
    }
  }
  return found;
}

// Lanes of unit block u that are units.
template <class T>
FASTRNN_INLINE int64_t valid_lanes(int64_t units, int64_t u) {
  return min(units - u * kWidth<T>, kWidth<T>);
}

// One chunk of gates or dgates: [nb][rows][S][W].
template <class T, int kSlots>
struct GateBlock {
  T* data;
  int64_t rows;  // padded
  static constexpr int64_t kRow = int64_t(kSlots) * kWidth<T>;
  T* at(int64_t u, int64_t row) const { return data + (u * rows + row) * kRow; }
  int64_t block_stride() const { return rows * kRow; }
};

template <class T, int kSlots>
FASTRNN_INLINE GateBlock<T, kSlots> gate_chunk(const Steps& s, void* gates, int64_t blocks, int64_t c,
                                               bool all_chunks_kept) {
  const int64_t base = all_chunks_kept ? s.chunk_base[c] : 0;
  return {static_cast<T*>(gates) + base * blocks * kSlots * kWidth<T>, s.chunk_base[c + 1] - s.chunk_base[c]};
}

}  // namespace FASTRNN_ISA
}  // namespace fastrnn
