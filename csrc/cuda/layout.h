// Where things stand in the reserve and the workspaces. A layout made at address null tells its
// size.
#pragma once

#include <algorithm>
#include <vector>

#include "cuda/cublaslt.h"
#include "cuda/fastrnn_cuda.h"
#include "cuda/path.h"

namespace fastrnn {
namespace cuda {

// What of a cell the host needs to know: see cells/lstm.h.
struct CellShape {
  int gates, slots, x_slot, h_slot, first_h_gate;  // the gate of slot h_slot; those of later slots follow each other
  bool has_c;
};
inline CellShape cell_shape(CellType cell) {
  switch (cell) {
    case CellType::lstm:
      return {4, 4, 0, 0, 0, true};
    case CellType::gru:
      return {3, 4, 1, 0, 2, false};
    default:
      return {1, 1, 0, 0, 0, false};
  }
}

class Arena {
 public:
  explicit Arena(void* base) : base_(reinterpret_cast<uintptr_t>(base)) {}
  template <class T>
  T* take(int64_t n, bool wanted = true) {
    if (!wanted) return nullptr;
    T* at = reinterpret_cast<T*>(base_ + size_);
    parts_.push_back(size_t(n) * sizeof(T));
    size_ += (parts_.back() + 255) & ~size_t(255);
    return at;
  }
  size_t size() const { return size_; }
  const std::vector<size_t>& parts() const { return parts_; }  // bytes of each, before they are aligned

 private:
  uintptr_t base_;  // 0: only the size is asked for
  size_t size_ = 0;
  std::vector<size_t> parts_;
};

// The array from element `by` on; null stays null.
template <class Number>
Number* offset(Number* p, int64_t by) {
  return p ? p + by : nullptr;
}

struct Extents {
  Extents(const Problem& p, const Batch& b)
      : T(b.seq_len),
        B(b.batch),
        rows(T * B),
        H(p.hidden_size),
        P(p.state_size()),
        width(p.directions * P),
        states(p.num_layers * p.directions),
        most_input(std::max(p.input_size, p.num_layers > 1 ? width : 0)),
        stride((rows + 7) / 8 * 8),
        cell(cell_shape(p.cell)),
        projected(p.proj_size > 0),
        at_once(!projected && H <= kOneSmMost ? p.directions : 1),
        blas(blas_workspace(rows * cell.gates * H * std::max(most_input, P))) {}
  int64_t T, B, rows, H, P;
  int64_t width;       // of a layer's output
  int64_t states;      // L*D
  int64_t most_input;  // of any layer
  int64_t stride;      // from row to row of what is transposed: rows, aligned for copies of 16 bytes
  CellShape cell;
  bool projected;
  int at_once;  // directions of a layer that may run side by side, on some device
  size_t blas;  // bytes that cuBLASLt wants for the largest product over all steps
};

// What forward keeps for backward.
template <class N>
struct Reserve {
  using T = typename N::Storage;
  using Sum = typename N::Sum;
  struct Scan {  // of one layer in one direction
    T* slots;    // (T, B, slots, H)
    Sum* c;      // (T, B, H)
    T* hidden;   // (T, B, H): what is projected
  };
  Reserve(const Problem& p, const Extents& e, void* base) : arena(base) {
    h_0 = arena.template take<T>(e.states * e.B * e.P);
    c_0 = arena.template take<Sum>(e.states * e.B * e.H, e.cell.has_c);
    for (int64_t i = 0; i < e.states; i++) {
      scans.push_back({arena.template take<T>(e.rows * e.cell.slots * e.H),
                       arena.template take<Sum>(e.rows * e.H, e.cell.has_c),
                       arena.template take<T>(e.rows * e.H, e.projected)});
    }
    for (int64_t i = 0; i + 1 < p.num_layers; i++) outputs.push_back(arena.template take<T>(e.rows * e.width));
  }
  Arena arena;
  T* h_0;  // (L*D, B, P)
  Sum* c_0;
  std::vector<Scan> scans;
  std::vector<T*> outputs;  // (T, B, D*P) of every layer but the last, before dropout
};

template <class N>
struct ForwardWorkspace {
  using T = typename N::Storage;
  using Sum = typename N::Sum;
  ForwardWorkspace(const Problem& p, const Extents& e, bool dropout, bool training, void* base) : arena(base) {
    for (int d = 0; d < 2; d++)
      gates[d] = d < e.at_once ? arena.template take<T>(e.rows * e.cell.gates * e.H, !training) : gates[0];
    hidden = arena.template take<T>(e.B * e.H, !training && e.projected);
    c = arena.template take<Sum>(e.B * e.H, e.cell.has_c);
    dropped = arena.template take<T>(e.rows * e.width, dropout && p.num_layers > 1);
    for (int i = 0; i < 2; i++)
      outputs[i] = arena.template take<T>(e.rows * e.width, !training && p.num_layers > i + 1);
    blas = arena.template take<char>(int64_t(e.blas), e.blas > 0);
  }
  Arena arena;
  T* gates[2];  // of each direction: (T, B, gates, H)
  T *hidden, *dropped, *outputs[2];
  Sum* c;
  char* blas;  // for cuBLASLt
};

template <class N>
struct BackwardWorkspace {
  using T = typename N::Storage;
  using Sum = typename N::Sum;
  BackwardWorkspace(const Problem& p, const Extents& e, bool dropout, void* base) : arena(base) {
    const int64_t slots = e.cell.slots * e.H, gates = e.cell.gates * e.H;
    for (int d = 0; d < 2; d++) {
      dslots[d] = d < e.at_once ? arena.template take<T>(e.rows * slots) : dslots[0];
      w_hh_t[d] = d < e.at_once ? arena.template take<T>(e.P * gates) : w_hh_t[0];
    }
    dslots_t = arena.template take<T>(slots * e.stride);
    inputs_t = arena.template take<T>(std::max({e.most_input, e.P, e.projected ? e.H : 0}) * e.stride);
    w_ih_t = arena.template take<T>(e.most_input * gates);
    w_hr_t = arena.template take<T>(e.H * e.P, e.projected);
    dh = arena.template take<T>(e.rows * e.P, e.projected);
    direct = arena.template take<Sum>(e.B * e.P);
    dc = arena.template take<Sum>(e.B * e.H, e.cell.has_c);
    dropped = arena.template take<T>(e.rows * e.width, dropout && p.num_layers > 1);
    for (int i = 0; i < 2; i++) doutputs[i] = arena.template take<T>(e.rows * e.width, p.num_layers > i + 1);
    blas = arena.template take<char>(int64_t(e.blas), e.blas > 0);
  }
  Arena arena;
  T* dslots[2];        // of each direction: (T, B, slots, H)
  T* w_hh_t[2];        // likewise, transposed with its gates in the order of the slots
  T* dslots_t;         // (slots, H, T, B)
  T* inputs_t;         // of x, h or what is projected, transposed
  T *w_ih_t, *w_hr_t;  // transposed
  T* dh;               // (T, B, P): gradients of what projections gave
  Sum *direct, *dc;    // (B, P), (B, H)
  T* dropped;
  T* doutputs[2];  // (T, B, D*P)
  char* blas;      // for cuBLASLt
};

}  // namespace cuda
}  // namespace fastrnn
