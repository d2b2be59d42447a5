// passes.h's functions; included by one kernels_<n>.cu for every N.
#pragma once

#include "cuda/general.h"
#include "cuda/one_sm.h"
#include "cuda/passes.h"

namespace fastrnn {
namespace cuda {

template <class N>
class Pass {
 protected:
  using T = typename N::Storage;
  using Sum = typename N::Sum;

  Pass(const Call& call, const std::vector<Weights>& weights)
      : call(call),
        p(call.problem),
        e(call.problem, call.batch),
        weights(weights),
        dropout(call.dropout.p > 0),
        stream(static_cast<cudaStream_t>(call.stream)) {}

  Rows rows_in(int direction) const { return {e.T, e.B, call.batch.lengths, call.batch.resets, direction == 1}; }

  Path path(bool fits) const { return choose_path(p, call.batch, fits); }

  static const T* in(const void* p) { return static_cast<const T*>(p); }
  static T* out(void* p) { return static_cast<T*>(p); }

  // A layer's output as the next one takes it in.
  void drop(int64_t layer, const T* from, T* to) const {
    const int64_t groups = p.directions * ((e.P + 3) / 4);
    run_pointwise(
        e.rows * groups, stream,
        Drop<T>{DropoutRule(call.dropout), e.B, e.P, groups, uint32_t(layer * p.directions), p.directions, from, to});
  }

  const Call& call;
  const Problem& p;
  const Extents e;
  const std::vector<Weights>& weights;
  const bool dropout;
  const cudaStream_t stream;
};

template <class N>
class Forward : Pass<N> {
  using Base = Pass<N>;
  using Base::call;
  using Base::dropout;
  using Base::e;
  using Base::in;
  using Base::out;
  using Base::p;
  using Base::stream;
  using typename Base::Sum;
  using typename Base::T;

 public:
  Forward(const Call& call, const std::vector<Weights>& weights, const ForwardArrays& arrays)
      : Base(call, weights),
        a(arrays),
        training(call.reserve),
        reserve(p, e, call.reserve),
        workspace(p, e, dropout, training, call.workspace) {}

  void run() {
    const T* x = in(a.x);
    for (int64_t layer = 0; layer < p.num_layers; layer++) {
      T* y = layer + 1 == p.num_layers ? out(a.y)
             : training                ? reserve.outputs[size_t(layer)]
                                       : workspace.outputs[layer % 2];
      scan(layer, x, y);
      x = y;
      if (dropout && layer + 1 < p.num_layers) {
        this->drop(layer, y, workspace.dropped);
        x = workspace.dropped;
      }
    }
  }

 private:
  void scan(int64_t layer, const T* x, T* y) const {
    ForwardScan<N> scans[2] = {};
    bool aligned = OneSmPath<N>::aligned(y, e.width);
    for (int d = 0; d < p.directions; d++) {
      aligned &= OneSmPath<N>::aligned(in(this->weights[size_t(layer * p.directions + d)].w_hh), e.P);
    }
    const bool at_once = this->path(aligned && OneSmPath<N>::fits_forward(p)) == Path::one_sm;
    for (int d = 0; d < p.directions; d++) {
      scans[d] = begin(layer, d, x, y);
      if (!at_once) GeneralPath<N>(p, e, {nullptr, workspace.c}, stream).forward(scans[d]);
    }
    if (at_once) OneSmPath<N>(p, e, stream).forward(scans);
  }

  // All that comes before the recurrence.
  ForwardScan<N> begin(int64_t layer, int d, const T* x, T* y) const {
    const int64_t i = layer * p.directions + d, I = p.layer_input_size(layer);
    const Weights& w = this->weights[size_t(i)];
    ForwardScan<N> s = {};
    s.rows = this->rows_in(d);
    s.w_hh = in(w.w_hh);
    s.w_hr = in(w.w_hr);
    s.b_ih = in(w.b_ih);
    s.b_hh = in(w.b_hh);
    s.h_0 = offset(in(a.h_0), i * e.B * e.P);
    s.c_0 = offset(in(a.c_0), i * e.B * e.H);
    s.hidden = workspace.hidden;
    T* gates = workspace.gates[d];
    s.x_stride = e.cell.gates * e.H;
    if (training) {
      const typename Reserve<N>::Scan& kept = reserve.scans[size_t(i)];
      keep(s.h_0, reserve.h_0 + i * e.B * e.P, e.B * e.P);
      if (e.cell.has_c) keep(s.c_0, reserve.c_0 + i * e.B * e.H, e.B * e.H);
      s.slots = kept.slots;
      s.c = kept.c;
      s.hidden = kept.hidden;
      s.hidden_stride = e.B * e.H;
      gates = s.slots + e.cell.x_slot * e.H;
      s.x_stride = e.cell.slots * e.H;
    }
    s.x_gates = gates;
    s.y = y + d * e.P;
    s.h_n = out(a.h_n) + i * e.B * e.P;
    s.c_n = offset(out(a.c_n), i * e.B * e.H);
    multiply_steps<N>(rows_of(x, I, e.rows, I), rows_of(in(w.w_ih), I, e.cell.gates * e.H, I), I, gates, s.x_stride,
                      false, workspace.blas, stream);
    return s;
  }

  template <class To>
  void keep(const T* from, To* to, int64_t n) const {
    run_pointwise(n, stream, Convert<To, T>{from, to});
  }

  const ForwardArrays& a;
  const bool training;
  const Reserve<N> reserve;
  const ForwardWorkspace<N> workspace;
};

template <class N>
class Backward : Pass<N> {
  using Base = Pass<N>;
  using Base::call;
  using Base::dropout;
  using Base::e;
  using Base::in;
  using Base::out;
  using Base::p;
  using Base::stream;
  using typename Base::Sum;
  using typename Base::T;

 public:
  Backward(const Call& call, const std::vector<Weights>& weights, const BackwardArrays& arrays,
           const std::vector<WeightGrads>& grads)
      : Base(call, weights),
        a(arrays),
        grads(grads),
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
      scan(layer, x, dy, dx);
      if (layer && dropout) this->drop(layer - 1, dx, dx);
      dy = dx;
    }
  }

 private:
  void scan(int64_t layer, const T* x, const T* dy, T* dx) const {
    BackwardScan<N> scans[2] = {};
    const bool aligned = OneSmPath<N>::aligned(dy, e.width) && OneSmPath<N>::aligned(output(layer), e.width);
    const bool at_once = this->path(aligned && OneSmPath<N>::fits_backward(p)) == Path::one_sm;
    for (int d = 0; d < p.directions; d++) {
      scans[d] = begin(layer, d, dy);
      if (at_once) continue;
      GeneralPath<N>(p, e, {workspace.direct, workspace.dc}, stream).backward(scans[d]);
      finish(layer, d, scans[d], x, dx);
    }
    if (!at_once) return;
    OneSmPath<N>(p, e, stream).backward(scans);
    for (int d = 0; d < p.directions; d++) finish(layer, d, scans[d], x, dx);
  }

  const T* output(int64_t layer) const { return layer + 1 == p.num_layers ? in(a.y) : reserve.outputs[size_t(layer)]; }

  BackwardScan<N> begin(int64_t layer, int d, const T* dy) const {
    const int64_t i = layer * p.directions + d, gates_size = e.cell.gates * e.H;
    const Weights& w = this->weights[size_t(i)];
    const Rows rows = this->rows_in(d);
    const typename Reserve<N>::Scan& kept = reserve.scans[size_t(i)];
    write_transposed<T>(RotatedBlocks<T>{in(w.w_hh), e.P, e.H, e.cell.first_h_gate}, gates_size, e.P,
                        workspace.w_hh_t[d], gates_size, stream);
    if (e.projected) {
      write_transposed<T>(rows_of(in(w.w_hr), e.H, e.P, e.H), e.P, e.H, workspace.w_hr_t, e.P, stream);
    }
    BackwardScan<N> s = {};
    s.w_hh_t = workspace.w_hh_t[d];
    s.w_hr_t = workspace.w_hr_t;
    s.dy = offset(dy, d * e.P);
    s.dh_n = offset(in(a.dh_n), i * e.B * e.P);
    s.dc_n = offset(in(a.dc_n), i * e.B * e.H);
    s.slots = kept.slots;
    s.h = {rows, 0, output(layer) + d * e.P, e.width, reserve.h_0 + i * e.B * e.P, e.P, 0};
    s.c = {rows, 0, kept.c, e.H, e.cell.has_c ? reserve.c_0 + i * e.B * e.H : nullptr, e.H, 0};
    s.dslots = workspace.dslots[d];
    s.dh = workspace.dh;
    s.dh_0 = offset(out(a.dh_0), i * e.B * e.P);
    s.dc_0 = offset(out(a.dc_0), i * e.B * e.H);
    return s;
  }

  // All that comes after the recurrence: the gradients of x and of the weights.
  void finish(int64_t layer, int d, const BackwardScan<N>& s, const T* x, T* dx) const {
    const int64_t i = layer * p.directions + d, I = p.layer_input_size(layer), gates_size = e.cell.gates * e.H;
    const int64_t slots_stride = e.cell.slots * e.H;
    const Rows& rows = s.h.rows;
    if (dx) {
      const T* w_ih = in(this->weights[size_t(i)].w_ih);
      write_transposed<T>(rows_of(w_ih, I, gates_size, I), gates_size, I, workspace.w_ih_t, gates_size, stream);
      multiply_steps<N>(rows_of<const T>(s.dslots + e.cell.x_slot * e.H, slots_stride, e.rows, gates_size),
                        rows_of<const T>(workspace.w_ih_t, gates_size, I, gates_size), gates_size, dx, I, d > 0,
                        workspace.blas, stream, rows);
    }
    weight_gradients(grads[size_t(i)], LiveRows<T>{rows, x, I}, I, s, reserve.scans[size_t(i)].hidden);
  }

  void weight_gradients(const WeightGrads& dw, const LiveRows<T>& x, int64_t I, const BackwardScan<N>& s,
                        const T* hidden) const {
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
    transposed(rows_of<const T>(s.dslots, slots_size, e.rows, slots_size), slots_size, workspace.dslots_t);
    if (dw.w_ih) {
      transposed(x, I, workspace.inputs_t);
      add_products(e.cell.x_slot, G, I, out(dw.w_ih));
    }
    if (dw.w_hh) {
      transposed(PreviousStates<T>{s.h}, e.P, workspace.inputs_t);
      each_h_part([&](int64_t slot, int64_t gate, int64_t count) {
        add_products(slot, count, e.P, out(dw.w_hh) + gate * e.H * e.P);
      });
    }
    if (dw.b_ih) add_sums(e.cell.x_slot, G, out(dw.b_ih));
    if (dw.b_hh) {
      each_h_part([&](int64_t slot, int64_t gate, int64_t count) { add_sums(slot, count, out(dw.b_hh) + gate * e.H); });
    }
    if (dw.w_hr) {
      transposed(rows_of<const T>(s.dh, e.P, e.rows, e.P), e.P, workspace.dslots_t);
      transposed(rows_of(hidden, e.H, e.rows, e.H), e.H, workspace.inputs_t);
      add_outer(workspace.dslots_t, e.P, e.H, out(dw.w_hr));
    }
  }

  // to (m, n) += sum over all rows of gates (m, rows) times inputs_t (n, rows).
  void add_outer(const T* gates, int64_t m, int64_t n, T* to) const {
    multiply_steps<N>(rows_of(gates, e.stride, m, e.stride), rows_of(workspace.inputs_t, e.stride, n, e.stride),
                      e.stride, to, n, a.accumulate, workspace.blas, stream);
  }

  const BackwardArrays& a;
  const std::vector<WeightGrads>& grads;
  const Reserve<N> reserve;
  const BackwardWorkspace<N> workspace;
};

template <class N>
void run_forward(const Call& call, const std::vector<Weights>& weights, const ForwardArrays& arrays) {
  Forward<N>(call, weights, arrays).run();
}

template <class N>
void run_backward(const Call& call, const std::vector<Weights>& weights, const BackwardArrays& arrays,
                  const std::vector<WeightGrads>& grads) {
  Backward<N>(call, weights, arrays, grads).run();
}

template <class N>
Paths paths_of(const Problem& problem, const Batch& batch) {
  return {choose_path(problem, batch, OneSmPath<N>::fits_forward(problem)),
          choose_path(problem, batch, OneSmPath<N>::fits_backward(problem))};
}

#define FASTRNN_COMPILE_PASSES(N)                                                                \
  template Paths paths_of<N>(const Problem&, const Batch&);                                      \
  template void run_forward<N>(const Call&, const std::vector<Weights>&, const ForwardArrays&);  \
  template void run_backward<N>(const Call&, const std::vector<Weights>&, const BackwardArrays&, \
                                const std::vector<WeightGrads>&);

}  // namespace cuda
}  // namespace fastrnn
