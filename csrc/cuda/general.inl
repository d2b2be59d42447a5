// general.h's functions; included by one general_<n>.cu for every N.
#pragma once

#include <algorithm>

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"
#include "cuda/general.h"
#include "cuda/pointwise.h"
#include "cuda/product.h"
#include "cuda/step.h"

namespace fastrnn {
namespace cuda {

template <template <class> class CellOf>
struct CellTag {
  template <class Math>
  using Cell = CellOf<Math>;
};

// Calls run(CellTag) for the cell.
template <class Run>
void with_cell(CellType cell, Run&& run) {
  switch (cell) {
    case CellType::lstm:
      return run(CellTag<LstmCell>{});
    case CellType::gru:
      return run(CellTag<GruCell>{});
    case CellType::rnn_tanh:
      return run(CellTag<RnnTanhCell>{});
    case CellType::rnn_relu:
      return run(CellTag<RnnReluCell>{});
  }
}

// What divides the address and the length of every row, 16 bytes at most, and at which copies may thus be made.
template <class T>
int chunk_of(const T* data, int64_t stride, int64_t k_size) {
  const uint64_t all =
      reinterpret_cast<uintptr_t>(data) | uint64_t(stride) * sizeof(T) | uint64_t(k_size) * sizeof(T) | 16;
  return int(all & -all);
}
template <class T>
RowOperand<std::remove_const_t<T>> rows_of(T* data, int64_t stride, int64_t count, int64_t k_size) {
  return {data, stride, count, chunk_of(data, stride, k_size)};
}

template <class N>
class General {
 protected:
  using T = typename N::Storage;
  using Sum = typename N::Sum;

  General(const Call& call, const std::vector<Weights>& weights)
      : call(call),
        p(call.problem),
        e(call.problem, call.batch),
        weights(weights),
        stream(static_cast<cudaStream_t>(call.stream)) {}

  Rows rows_in(int direction) const { return {e.T, e.B, call.batch.lengths, call.batch.resets, direction == 1}; }

  static const T* in(const void* p) { return static_cast<const T*>(p); }
  static T* out(void* p) { return static_cast<T*>(p); }
  template <class Number>
  static Number* offset(Number* p, int64_t by) {
    return p ? p + by : nullptr;
  }

  template <class To, class From>
  void convert(const From* from, To* to, int64_t n) const {
    run_pointwise(n, stream, Convert<To, From>{from, to});
  }

  // A layer's output as the next one takes it in.
  void drop(int64_t layer, const T* from, T* to) const {
    const int64_t groups = p.directions * ((e.P + 3) / 4);
    run_pointwise(
        e.rows * groups, stream,
        Drop<T>{DropoutRule(call.dropout), e.B, e.P, groups, uint32_t(layer * p.directions), p.directions, from, to});
  }

  // Calls run(StepBlocks, std::integral_constant<int, rows of a block>) for a kernel of `width` units.
  template <class Run>
  void with_blocks(int64_t width, Run&& run) const {
    if (e.B < kLargeBatch) {
      run(StepBlocks(width, e.B, kFewRows), std::integral_constant<int, kFewRows>{});
    } else {
      run(StepBlocks(width, e.B, kManyRows), std::integral_constant<int, kManyRows>{});
    }
  }

  const Call& call;
  const Problem& p;
  const Extents e;
  const std::vector<Weights>& weights;
  const cudaStream_t stream;
};

template <class N>
class GeneralForward : General<N> {
  using Base = General<N>;
  using Base::call;
  using Base::e;
  using Base::in;
  using Base::offset;
  using Base::out;
  using Base::p;
  using Base::stream;
  using typename Base::Sum;
  using typename Base::T;

 public:
  GeneralForward(const Call& call, const std::vector<Weights>& weights, const ForwardArrays& arrays)
      : Base(call, weights),
        a(arrays),
        training(call.reserve),
        dropout(call.dropout.p > 0),
        reserve(p, e, call.reserve),
        workspace(p, e, dropout, training, call.workspace) {}

  void run() {
    const T* x = in(a.x);
    for (int64_t layer = 0; layer < p.num_layers; layer++) {
      T* y = layer + 1 == p.num_layers ? out(a.y)
             : training                ? reserve.outputs[size_t(layer)]
                                       : workspace.outputs[layer % 2];
      for (int d = 0; d < p.directions; d++) scan(layer, d, x, y + d * e.P);
      x = y;
      if (dropout && layer + 1 < p.num_layers) {
        this->drop(layer, y, workspace.dropped);
        x = workspace.dropped;
      }
    }
  }

 private:
  void scan(int64_t layer, int d, const T* x, T* y) {
    const int64_t i = layer * p.directions + d, I = p.layer_input_size(layer);
    const Weights& w = this->weights[size_t(i)];
    const Rows rows = this->rows_in(d);
    const T* h_0 = offset(in(a.h_0), i * e.B * e.P);
    const T* c_0 = offset(in(a.c_0), i * e.B * e.H);
    if (training) {
      this->convert(h_0, reserve.h_0 + i * e.B * e.P, e.B * e.P);
      if (e.cell.has_c) this->convert(c_0, reserve.c_0 + i * e.B * e.H, e.B * e.H);
    }
    if (e.cell.has_c) this->convert(c_0, workspace.c, e.B * e.H);
    T* slots = training ? reserve.scans[size_t(i)].slots : nullptr;
    const int64_t x_stride = (training ? e.cell.slots : e.cell.gates) * e.H;
    T* gates = training ? slots + e.cell.x_slot * e.H : workspace.gates;
    multiply<N>(rows_of(x, I, e.rows, I), rows_of(in(w.w_ih), I, e.cell.gates * e.H, I), I, gates, x_stride, false,
                stream);
    for (int64_t n = 0; n < e.T; n++) {
      const int64_t t = rows.reverse ? e.T - 1 - n : n, row = t * e.B;
      T* h = y + row * e.width;
      T* hidden = !e.projected ? nullptr : training ? reserve.scans[size_t(i)].hidden + row * e.H : workspace.hidden;
      ForwardStep<N> step;
      step.hidden_size = e.H;
      step.state_size = e.P;
      step.h = {rows, t, y, e.width, h_0, e.P, 0};
      step.h.chunk = std::min(chunk_of(y, e.width, e.P), chunk_of(h_0, e.P, e.P));
      step.w_hh = in(w.w_hh);
      step.b_ih = in(w.b_ih);
      step.b_hh = in(w.b_hh);
      step.w_chunk = chunk_of(step.w_hh, e.P, e.P);
      step.x_gates = gates + row * x_stride;
      step.x_stride = x_stride;
      step.slots = offset(slots, row * e.cell.slots * e.H);
      step.c = workspace.c;
      step.c_kept = training && e.cell.has_c ? reserve.scans[size_t(i)].c + row * e.H : nullptr;
      step.out = e.projected ? hidden : h;
      step.out_stride = e.projected ? e.H : e.width;
      launch_step(step);
      if (e.projected) {
        multiply<N>(rows_of(hidden, e.H, e.B, e.H), rows_of(in(w.w_hr), e.H, e.P, e.H), e.H, h, e.width, false, stream,
                    rows, row);
      }
    }
    run_pointwise(e.B * e.P, stream, FinalState<T>{rows, e.P, y, e.width, h_0, out(a.h_n) + i * e.B * e.P});
    if (e.cell.has_c) this->convert(workspace.c, out(a.c_n) + i * e.B * e.H, e.B * e.H);
  }

  void launch_step(ForwardStep<N>& step) const {
    this->with_blocks(e.H, [&](const StepBlocks& blocks, auto rows) {
      step.unit_blocks = blocks.units;
      with_cell(p.cell, [&](auto tag) {
        using Tag = decltype(tag);
        launch_cell<Tag, decltype(rows)::value>(step, blocks);
      });
    });
  }
  template <class Tag, int kBlockRows>
  void launch_cell(const ForwardStep<N>& step, const StepBlocks& blocks) const {
    using Cell = typename Tag::template Cell<ScalarMath<Sum>>;
    launch(forward_step<N, Tag::template Cell, kBlockRows>, dim3(unsigned(blocks.units * blocks.rows)), kThreads,
           ForwardTile<N, Cell, kBlockRows>::kSharedBytes, stream, step);
  }

  const ForwardArrays& a;
  const bool training, dropout;
  const Reserve<N> reserve;
  const ForwardWorkspace<N> workspace;
};

template <class N>
class GeneralBackward : General<N> {
  using Base = General<N>;
  using Base::call;
  using Base::e;
  using Base::in;
  using Base::offset;
  using Base::out;
  using Base::p;
  using Base::stream;
  using typename Base::Sum;
  using typename Base::T;

 public:
  GeneralBackward(const Call& call, const std::vector<Weights>& weights, const BackwardArrays& arrays,
                  const std::vector<WeightGrads>& grads)
      : Base(call, weights),
        a(arrays),
        grads(grads),
        dropout(call.dropout.p > 0),
        reserve(p, e, call.reserve),
        workspace(p, e, dropout, call.workspace) {}

  void run() {
    const T* dy = in(a.dy);
    for (int64_t layer = p.num_layers - 1; layer >= 0; layer--) {
      const T* x = in(a.x);
      T* dx = out(a.dx);
      if (layer) {
        x = reserve.outputs[size_t(layer - 1)];
        if (dropout) {
          this->drop(layer - 1, x, workspace.dropped);
          x = workspace.dropped;
        }
        dx = workspace.doutputs[(layer - 1) % 2];
      }
      for (int d = 0; d < p.directions; d++) scan(layer, d, x, dy, dx);
      if (layer && dropout) this->drop(layer - 1, dx, dx);
      dy = dx;
    }
  }

 private:
  void scan(int64_t layer, int d, const T* x, const T* dy, T* dx) {
    const int64_t i = layer * p.directions + d, I = p.layer_input_size(layer), G = e.cell.gates;
    const int64_t slots_stride = e.cell.slots * e.H;
    const Weights& w = this->weights[size_t(i)];
    const Rows rows = this->rows_in(d);
    const typename Reserve<N>::Scan& kept = reserve.scans[size_t(i)];
    const T* y = layer + 1 == p.num_layers ? in(a.y) : reserve.outputs[size_t(layer)];
    const T* h_0 = reserve.h_0 + i * e.B * e.P;
    const PreviousState<T> h{rows, 0, y + d * e.P, e.width, h_0, e.P, 0};
    const PreviousState<Sum> c{rows, 0, kept.c, e.H, e.cell.has_c ? reserve.c_0 + i * e.B * e.H : nullptr, e.H, 0};

    const int64_t gates_size = G * e.H;
    write_transposed<T>(RotatedBlocks<T>{in(w.w_hh), e.P, e.H, e.cell.first_h_gate}, gates_size, e.P, workspace.w_hh_t,
                        gates_size, stream);
    if (e.projected) {
      write_transposed<T>(rows_of(in(w.w_hr), e.H, e.P, e.H), e.P, e.H, workspace.w_hr_t, e.P, stream);
    }
    this->convert(offset(in(a.dh_n), i * e.B * e.P), workspace.direct, e.B * e.P);
    if (e.cell.has_c) this->convert(offset(in(a.dc_n), i * e.B * e.H), workspace.dc, e.B * e.H);

    const T* h_gates = workspace.dslots + e.cell.h_slot * e.H;
    NextGates<T> gates{rows, 0, false, h_gates, slots_stride, chunk_of(h_gates, slots_stride, gates_size)};
    for (int64_t n = 0; n < e.T; n++) {
      const int64_t t = rows.reverse ? n : e.T - 1 - n, row = t * e.B;
      const T* dy_t = offset(dy, row * e.width + d * e.P);
      gates.t = t;
      if (e.projected) {
        T* dh = workspace.dh + row * e.P;
        launch_state(gates, dy_t, dh);
        launch_step(t, rows_of(dh, e.P, e.B, e.P), workspace.w_hr_t, e.P, nullptr, nullptr, kept, h, c);
      } else {
        launch_step(t, gates, workspace.w_hh_t, gates_size, dy_t, workspace.direct, kept, h, c);
      }
    }
    gates.at_start = true;
    if (a.dh_0) launch_state(gates, nullptr, out(a.dh_0) + i * e.B * e.P);
    if (e.cell.has_c && a.dc_0) this->convert(workspace.dc, out(a.dc_0) + i * e.B * e.H, e.B * e.H);

    if (dx) {
      write_transposed<T>(rows_of(in(w.w_ih), I, gates_size, I), gates_size, I, workspace.w_ih_t, gates_size, stream);
      const T* x_gates = workspace.dslots + e.cell.x_slot * e.H;
      multiply<N>(rows_of(x_gates, slots_stride, e.rows, gates_size),
                  rows_of(workspace.w_ih_t, gates_size, I, gates_size), gates_size, dx, I, d > 0, stream, rows);
    }
    weight_gradients(grads[size_t(i)], LiveRows<T>{rows, x, I}, I, h, kept);
  }

  void weight_gradients(const WeightGrads& dw, const LiveRows<T>& x, int64_t I, const PreviousState<T>& h,
                        const typename Reserve<N>::Scan& kept) const {
    const int64_t slots_size = e.cell.slots * e.H, G = e.cell.gates;
    const auto transposed = [&](const auto& source, int64_t columns, T* to) {
      write_transposed<T>(source, e.rows, columns, to, e.stride, stream);
    };
    // Gates of consecutive slots to consecutive rows.
    const auto add_products = [&](int64_t slot, int64_t count, int64_t columns, T* to) {
      add_outer(workspace.dslots_t + slot * e.H * e.stride, count * e.H, columns, to);
    };
    const auto add_sums = [&](int64_t slot, int64_t count, T* to) {
      sum_rows<N>({workspace.dslots_t + slot * e.H * e.stride, e.rows, e.stride, count * e.H, to, a.accumulate},
                  stream);
    };
    // The gate of the first slot that W_hh feeds may stand elsewhere among W_hh's rows; the others follow each other.
    const auto each_h_part = [&](auto&& part) {
      if (e.cell.first_h_gate == 0) return part(e.cell.h_slot, 0, G);
      part(e.cell.h_slot, e.cell.first_h_gate, 1);
      part(e.cell.h_slot + 1, 0, G - 1);
    };
    transposed(rows_of(workspace.dslots, slots_size, e.rows, slots_size), slots_size, workspace.dslots_t);
    if (dw.w_ih) {
      transposed(x, I, workspace.inputs_t);
      add_products(e.cell.x_slot, G, I, out(dw.w_ih));
    }
    if (dw.w_hh) {
      transposed(PreviousStates<T>{h}, e.P, workspace.inputs_t);
      each_h_part([&](int64_t slot, int64_t gate, int64_t count) {
        add_products(slot, count, e.P, out(dw.w_hh) + gate * e.H * e.P);
      });
    }
    if (dw.b_ih) add_sums(e.cell.x_slot, G, out(dw.b_ih));
    if (dw.b_hh) {
      each_h_part([&](int64_t slot, int64_t gate, int64_t count) { add_sums(slot, count, out(dw.b_hh) + gate * e.H); });
    }
    if (dw.w_hr) {
      transposed(rows_of(workspace.dh, e.P, e.rows, e.P), e.P, workspace.dslots_t);
      transposed(rows_of(kept.hidden, e.H, e.rows, e.H), e.H, workspace.inputs_t);
      add_outer(workspace.dslots_t, e.P, e.H, out(dw.w_hr));
    }
  }

  // to (m, n) += sum over all rows of gates (m, rows) times inputs_t (n, rows).
  void add_outer(const T* gates, int64_t m, int64_t n, T* to) const {
    multiply<N>(rows_of(gates, e.stride, m, e.stride), rows_of(workspace.inputs_t, e.stride, n, e.stride), e.stride, to,
                n, a.accumulate, stream);
  }

  void launch_state(const NextGates<T>& gates, const T* dy, T* to) const {
    const int64_t k = e.cell.gates * e.H;
    this->with_blocks(e.P, [&](const StepBlocks& blocks, auto rows) {
      constexpr int block_rows = decltype(rows)::value;
      launch(state_gradient<N, block_rows>, dim3(unsigned(blocks.units * blocks.rows)), kThreads,
             BackwardTile<N, block_rows>::kSharedBytes, stream,
             StateGradient<N>{e.P, k, blocks.units, workspace.w_hh_t, chunk_of(workspace.w_hh_t, k, k), gates, dy,
                              e.width, workspace.direct, to});
    });
  }

  template <class Source>
  void launch_step(int64_t t, const Source& source, const T* w, int64_t k_size, const T* dy, Sum* direct,
                   const typename Reserve<N>::Scan& kept, const PreviousState<T>& h,
                   const PreviousState<Sum>& c) const {
    const int64_t row = t * e.B;
    BackwardStep<N, Source> step;
    step.hidden_size = e.H;
    step.k_size = k_size;
    step.w = w;
    step.w_chunk = chunk_of(w, k_size, k_size);
    step.source = source;
    step.dy = dy;
    step.dy_stride = e.width;
    step.direct = direct;
    step.dc = workspace.dc;
    step.slots = kept.slots + row * e.cell.slots * e.H;
    step.h = h;
    step.c_prev = c;
    step.h.t = step.c_prev.t = t;
    step.c = offset(kept.c, row * e.H);
    step.dslots = workspace.dslots + row * e.cell.slots * e.H;
    this->with_blocks(e.H, [&](const StepBlocks& blocks, auto rows) {
      step.unit_blocks = blocks.units;
      with_cell(p.cell, [&](auto tag) {
        using Tag = decltype(tag);
        launch_cell<Tag, decltype(rows)::value>(step, blocks);
      });
    });
  }
  template <class Tag, int kBlockRows, class Source>
  void launch_cell(const BackwardStep<N, Source>& step, const StepBlocks& blocks) const {
    if constexpr (std::is_same_v<Source, RowOperand<T>> && !Tag::template Cell<ScalarMath<Sum>>::kHasCellState) {
      return;  // never: only an LSTM is projected
    } else {
      launch(backward_step<N, Tag::template Cell, Source, kBlockRows>, dim3(unsigned(blocks.units * blocks.rows)),
             kThreads, BackwardTile<N, kBlockRows>::kSharedBytes, stream, step);
    }
  }

  const BackwardArrays& a;
  const std::vector<WeightGrads>& grads;
  const bool dropout;
  const Reserve<N> reserve;
  const BackwardWorkspace<N> workspace;
};

template <class N>
void forward_general(const Call& call, const std::vector<Weights>& weights, const ForwardArrays& arrays) {
  GeneralForward<N>(call, weights, arrays).run();
}

template <class N>
void backward_general(const Call& call, const std::vector<Weights>& weights, const BackwardArrays& arrays,
                      const std::vector<WeightGrads>& grads) {
  GeneralBackward<N>(call, weights, arrays, grads).run();
}

#define FASTRNN_COMPILE_GENERAL(N)                                                                   \
  template void forward_general<N>(const Call&, const std::vector<Weights>&, const ForwardArrays&);  \
  template void backward_general<N>(const Call&, const std::vector<Weights>&, const BackwardArrays&, \
                                    const std::vector<WeightGrads>&);

}  // namespace cuda
}  // namespace fastrnn
