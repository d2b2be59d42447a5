// What every path is told of a scan: the recurrence of one layer in one direction, whose W_ih x is there.
#pragma once

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"
#include "cuda/layout.h"
#include "cuda/rows.h"

namespace fastrnn {
namespace cuda {

template <class N>
struct ForwardScan {
  using T = typename N::Storage;
  using Sum = typename N::Sum;
  Rows rows;
  const T *w_hh, *w_hr;   // (G*H, P); (P, H) or, unprojected, null
  const T *b_ih, *b_hh;   // (G*H), or both null
  const T *h_0, *c_0;     // (B, P), (B, H), or null: zeros
  const T* x_gates;       // (T, B, x_stride): W_ih x
  int64_t x_stride;       //
  T* slots;               // (T, B, kSlots*H): what backward needs, or null. x_gates may stand in it
  Sum* c;                 // (T, B, H): likewise
  T* hidden;              // what is projected
  int64_t hidden_stride;  // of it, from step to step: (T, B, H), or 0 for (B, H) that every step overwrites
  T* y;                   // (T, B, width) from this direction's first unit on: h_t, zero past a row's end
  T *h_n, *c_n;           // (B, P), (B, H)
};

template <class N>
struct BackwardScan {
  using T = typename N::Storage;
  using Sum = typename N::Sum;
  const T *w_hh_t, *w_hr_t;  // transposed; w_hh with its gates in the order of the slots
  const T* dy;               // (T, B, width) from this direction's first unit on, or null: zeros
  const T *dh_n, *dc_n;      // (B, P), (B, H), or null: zeros
  const T* slots;            // (T, B, kSlots*H), as forward kept them
  PreviousState<T> h;        // of any step; also names the rows
  PreviousState<Sum> c;      // its steps are those that forward kept
  T* dslots;                 // (T, B, kSlots*H): the gate gradients; zero past a row's end
  T* dh;                     // (T, B, P): gradients of what a projection gave, or null
  T *dh_0, *dc_0;            // (B, P), (B, H), or null: not wanted
};

// Cells as values.
template <template <class> class CellOf>
struct CellTag {
  template <class Math>
  using Cell = CellOf<Math>;
};

// Calls run(CellTag) for the cell.
template <class Run>
auto with_cell(CellType cell, Run&& run) {
  switch (cell) {
    case CellType::lstm:
      return run(CellTag<LstmCell>{});
    case CellType::gru:
      return run(CellTag<GruCell>{});
    case CellType::rnn_tanh:
      return run(CellTag<RnnTanhCell>{});
    default:
      return run(CellTag<RnnReluCell>{});
  }
}

}  // namespace cuda
}  // namespace fastrnn
