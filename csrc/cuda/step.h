// One time step: the recurrent product of a few units and rows, and the cell on it. Every block owns kUnits units with
// all their gates, and kBlockRows rows of the batch: few, so that many blocks share the work, or, of a large batch,
// many, so that the weights are read less often.
#pragma once

#include "cuda/rows.h"
#include "cuda/tile.h"

namespace fastrnn {
namespace cuda {

constexpr int kUnits = 16, kFewRows = 16, kManyRows = 32;
constexpr int64_t kLargeBatch = 33;  // from which on a block takes many

// A step's blocks, units inside.
struct StepBlocks {
  int64_t units, rows;
  StepBlocks(int64_t width, int64_t batch, int block_rows)
      : units((width + kUnits - 1) / kUnits), rows((batch + block_rows - 1) / block_rows) {}
};

// Calls put(i, unit, row) for each of this thread's units and rows that exist, neighbouring threads neighbouring units.
template <int kBlockRows>
constexpr int kPerThread = kUnits * kBlockRows / kThreads;
template <int kBlockRows, class Put>
FASTRNN_DEVICE void each_unit(int64_t first_unit, int64_t width, int64_t first_row, int64_t batch, Put&& put) {
#pragma unroll
  for (int i = 0; i < kPerThread<kBlockRows>; i++) {
    const int at = i * kThreads + int(threadIdx.x), unit = at % kUnits, row = at / kUnits;
    if (first_unit + unit < width && first_row + row < batch) put(i, unit, row);
  }
}

// ---- forward

template <class N>
struct ForwardStep {
  using T = typename N::Storage;
  using Sum = typename N::Sum;
  int64_t hidden_size, state_size, unit_blocks;
  PreviousState<T> h;           // also names the rows and t
  const T *w_hh, *b_ih, *b_hh;  // (G*H, P), (G*H) or null
  int w_chunk;                  // of w_hh's rows
  const T* x_gates;             // (B, x_stride): W_ih x_t
  int64_t x_stride;             //
  T* slots;                     // (B, kSlots*H): what backward needs, or null. x_gates may stand in it
  Sum *c, *c_kept;              // (B, H) each: c_{t-1}, which becomes c_t; a copy of it, or null
  T* out;                       // (B, out_stride): h_t or, projected, what is projected; zero past a row's end
  int64_t out_stride;
};

// The rows of w_hh that a block's units need, slot by slot.
template <class N, class Cell>
struct GateRows {
  const typename N::Storage* w_hh;
  int64_t hidden_size, state_size, first_unit;
  int chunk;

  FASTRNN_DEVICE const typename N::Storage* row(int64_t r) const {
    const int64_t u = first_unit + r % kUnits;
    if (u >= hidden_size) return nullptr;
    return w_hh + (Cell::gate_of_slot(Cell::kHSlot + int(r / kUnits)) * hidden_size + u) * state_size;
  }
};

template <class N, class Cell, int kBlockRows>
using ForwardTile = Tile<N, Cell::kGates * kUnits, kBlockRows>;

template <class N, template <class> class CellOf, int kBlockRows>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm<N>) forward_step(ForwardStep<N> p) {
  using T = typename N::Storage;
  using Sum = typename N::Sum;
  using Cell = CellOf<ScalarMath<N>>;
  const int64_t first_unit = blockIdx.x % p.unit_blocks * kUnits, first_row = blockIdx.x / p.unit_blocks * kBlockRows;
  const int64_t H = p.hidden_size, t = p.h.t;
  const Rows& rows = p.h.rows;
  // What the cell needs besides the product is on its way while that is computed.
  Sum slots[kPerThread<kBlockRows>][Cell::kSlots] = {}, h_prev[kPerThread<kBlockRows>] = {},
      c_prev[kPerThread<kBlockRows>] = {};
  bool lives[kPerThread<kBlockRows>] = {};
  each_unit<kBlockRows>(first_unit, H, first_row, rows.batch, [&](int i, int unit, int row) {
    const int64_t u = first_unit + unit, b = first_row + row;
    lives[i] = rows.lives(t, b);
    if (!lives[i]) return;
#pragma unroll
    for (int g = 0; g < Cell::kGates; g++) {
      const int x_slot = Cell::kXSlot + g, h_slot = Cell::kHSlot + g;
      slots[i][x_slot] += to_sum(p.x_gates[b * p.x_stride + g * H + u]);
      if (p.b_ih) {
        slots[i][x_slot] += to_sum(p.b_ih[Cell::gate_of_slot(x_slot) * H + u]);
        slots[i][h_slot] += to_sum(p.b_hh[Cell::gate_of_slot(h_slot) * H + u]);
      }
    }
    if (Cell::kUsesPreviousState) {
      const T* previous = p.h.row(b);
      if (previous) h_prev[i] = to_sum(previous[u]);
    }
    if (Cell::kHasCellState && !rows.reset(t, b)) c_prev[i] = p.c[b * H + u];
  });
  ForwardTile<N, Cell, kBlockRows> tile;
  tile.run(GateRows<N, Cell>{p.w_hh, H, p.state_size, first_unit, p.w_chunk}, 0, p.h, first_row, p.state_size);
  tile.share();
  each_unit<kBlockRows>(first_unit, H, first_row, rows.batch, [&](int i, int unit, int row) {
    const int64_t u = first_unit + unit, b = first_row + row, cell = b * H + u;
    Sum c = 0, h = 0;
    if (lives[i]) {
#pragma unroll
      for (int g = 0; g < Cell::kGates; g++) slots[i][Cell::kHSlot + g] += tile.at(g * kUnits + unit, row);
      Cell::forward(slots[i], h_prev[i], c_prev[i], c, h);
      if (Cell::kHasCellState) {
        p.c[cell] = c;
        if (p.c_kept) p.c_kept[cell] = c;
      }
      if (p.slots) {
#pragma unroll
        for (int s = 0; s < Cell::kSlots; s++) p.slots[(b * Cell::kSlots + s) * H + u] = from_sum<T>(slots[i][s]);
      }
    }
    p.out[b * p.out_stride + u] = from_sum<T>(h);
  });
}

// ---- backward

template <class N, int kBlockRows>
using BackwardTile = Tile<N, kUnits, kBlockRows>;

// Source: rows (k_size) whose product with w is dh_t or a part of it. Unprojected, NextGates; projected, dh_t of what
// was projected to.
template <class N, class Source>
struct BackwardStep {
  using T = typename N::Storage;
  using Sum = typename N::Sum;
  int64_t hidden_size, k_size, unit_blocks;
  const T* w;                 // (H, k_size): w_hh or w_hr, transposed
  int w_chunk;                // of its rows
  Source source;              //
  const T* dy;                // (B, dy_stride) or null
  int64_t dy_stride;          //
  Sum *direct, *dc;           // (B, H): dh_t other than through w, or null; dc_t. Both become those of the step before
  const T* slots;             // (B, kSlots*H), as forward kept them
  PreviousState<T> h;         // h_{t-1}; also names the rows and t
  PreviousState<Sum> c_prev;  //
  const Sum* c;               // (B, H)
  T* dslots;                  // (B, kSlots*H): the gate gradients; zero past a row's end
};

template <class N, template <class> class CellOf, class Source, int kBlockRows>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm<N>) backward_step(BackwardStep<N, Source> p) {
  using T = typename N::Storage;
  using Sum = typename N::Sum;
  using Cell = CellOf<ScalarMath<N>>;
  const int64_t first_unit = blockIdx.x % p.unit_blocks * kUnits, first_row = blockIdx.x / p.unit_blocks * kBlockRows;
  const int64_t H = p.hidden_size, t = p.h.t;
  const Rows& rows = p.h.rows;
  Sum slots[kPerThread<kBlockRows>][Cell::kSlots], h_prev[kPerThread<kBlockRows>] = {},
                                                   c_prev[kPerThread<kBlockRows>] = {}, c[kPerThread<kBlockRows>] = {};
  Sum dh[kPerThread<kBlockRows>] = {}, dc[kPerThread<kBlockRows>] = {};
  bool lives[kPerThread<kBlockRows>] = {};
  each_unit<kBlockRows>(first_unit, H, first_row, rows.batch, [&](int i, int unit, int row) {
    const int64_t u = first_unit + unit, b = first_row + row, cell = b * H + u;
    lives[i] = rows.lives(t, b);
    if (!lives[i]) return;
#pragma unroll
    for (int s = 0; s < Cell::kSlots; s++) slots[i][s] = to_sum(p.slots[(b * Cell::kSlots + s) * H + u]);
    if (p.direct) dh[i] = p.direct[cell];
    if (p.dy) dh[i] += to_sum(p.dy[b * p.dy_stride + u]);
    if (Cell::kUsesPreviousState) {
      const T* previous = p.h.row(b);
      if (previous) h_prev[i] = to_sum(previous[u]);
    }
    if (Cell::kHasCellState) {
      const Sum* previous = p.c_prev.row(b);
      if (previous) c_prev[i] = previous[u];
      c[i] = p.c[cell];
      dc[i] = p.dc[cell];
    }
  });
  BackwardTile<N, kBlockRows> tile;
  tile.run(RowOperand<T>{p.w, p.k_size, H, p.w_chunk}, first_unit, p.source, first_row, p.k_size);
  tile.share();
  each_unit<kBlockRows>(first_unit, H, first_row, rows.batch, [&](int i, int unit, int row) {
    const int64_t u = first_unit + unit, b = first_row + row, cell = b * H + u;
    Sum dslot[Cell::kSlots] = {}, dh_prev;
    if (lives[i]) {
      dh[i] += tile.at(unit, row);
      Cell::backward(slots[i], h_prev[i], c_prev[i], c[i], dh[i], dc[i], dslot, dh_prev);
      const bool cut = rows.reset(t, b);  // the state before it acts on nothing
      if (p.direct) p.direct[cell] = cut ? Sum(0) : dh_prev;
      if (Cell::kHasCellState) p.dc[cell] = cut ? Sum(0) : dc[i];
    }
#pragma unroll
    for (int s = 0; s < Cell::kSlots; s++) p.dslots[(b * Cell::kSlots + s) * H + u] = from_sum<T>(dslot[s]);
  });
}

// The gradient of a state, as it stands between two steps: that of h_0, and of what a projection gave.
template <class N>
struct StateGradient {
  using T = typename N::Storage;
  using Sum = typename N::Sum;
  int64_t state_size, k_size, unit_blocks;
  const T* w;          // (P, k_size): w_hh transposed
  int w_chunk;         //
  NextGates<T> gates;  //
  const T* dy;         // (B, dy_stride) or null
  int64_t dy_stride;   //
  Sum* direct;         // (B, P): spent on rows that live
  T* out;              // (B, P)
};

template <class N, int kBlockRows>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm<N>) state_gradient(StateGradient<N> p) {
  using T = typename N::Storage;
  using Sum = typename N::Sum;
  const int64_t first_unit = blockIdx.x % p.unit_blocks * kUnits, first_row = blockIdx.x / p.unit_blocks * kBlockRows;
  const Rows& rows = p.gates.rows;
  BackwardTile<N, kBlockRows> tile;
  tile.run(RowOperand<T>{p.w, p.k_size, p.state_size, p.w_chunk}, first_unit, p.gates, first_row, p.k_size);
  tile.share();
  each_unit<kBlockRows>(first_unit, p.state_size, first_row, rows.batch, [&](int, int unit, int row) {
    const int64_t u = first_unit + unit, b = first_row + row, at = b * p.state_size + u;
    const bool lives = !p.gates.at_start && rows.lives(p.gates.t, b);
    Sum sum = 0;
    if (lives || p.gates.at_start) sum = tile.at(unit, row) + p.direct[at];
    if (lives && p.dy) sum += to_sum(p.dy[b * p.dy_stride + u]);
    if (lives) p.direct[at] = 0;
    p.out[at] = from_sum<T>(sum);
  });
}

}  // namespace cuda
}  // namespace fastrnn
