// The general path: any sizes, any GPU. A launch for every step.
#pragma once

#include <type_traits>

#include "cuda/pointwise.h"
#include "cuda/product.h"
#include "cuda/scan.h"
#include "cuda/step.h"

namespace fastrnn {
namespace cuda {

// Scratch memory of a scan.
template <class N>
struct GeneralScratch {
  typename N::Sum *direct, *c;  // (B, P), backward only; (B, H): of c, or of its gradient
};

template <class N>
class GeneralPath {
  using T = typename N::Storage;
  using Sum = typename N::Sum;

 public:
  GeneralPath(const Problem& problem, const Extents& extents, const GeneralScratch<N>& scratch, cudaStream_t stream)
      : p(problem), e(extents), scratch(scratch), stream(stream) {}

  void forward(const ForwardScan<N>& s) const {
    if (e.cell.has_c) convert(s.c_0, scratch.c, e.B * e.H);
    ForwardStep<N> step;
    step.hidden_size = e.H;
    step.state_size = e.P;
    step.h = {s.rows, 0, s.y, e.width, s.h_0, e.P, std::min(chunk_of(s.y, e.width, e.P), chunk_of(s.h_0, e.P, e.P))};
    step.w_hh = s.w_hh;
    step.b_ih = s.b_ih;
    step.b_hh = s.b_hh;
    step.w_chunk = chunk_of(s.w_hh, e.P, e.P);
    step.x_stride = s.x_stride;
    step.c = scratch.c;
    step.out_stride = e.projected ? e.H : e.width;
    for (int64_t n = 0; n < e.T; n++) {
      const int64_t t = s.rows.reverse ? e.T - 1 - n : n, row = t * e.B;
      T* h = s.y + row * e.width;
      step.h.t = t;
      step.x_gates = s.x_gates + row * s.x_stride;
      step.slots = offset(s.slots, row * e.cell.slots * e.H);
      step.c_kept = offset(s.c, row * e.H);
      step.out = e.projected ? s.hidden + t * s.hidden_stride : h;
      launch_step(step);
      if (e.projected) {
        multiply<N>(rows_of<const T>(step.out, e.H, e.B, e.H), rows_of(s.w_hr, e.H, e.P, e.H), e.H, h, e.width, false,
                    stream, s.rows, row);
      }
    }
    run_pointwise(e.B * e.P, stream, FinalState<T>{s.rows, e.P, s.y, e.width, s.h_0, s.h_n});
    if (e.cell.has_c) convert(scratch.c, s.c_n, e.B * e.H);
  }

  void backward(const BackwardScan<N>& s) const {
    const Rows& rows = s.h.rows;
    const int64_t gates_size = e.cell.gates * e.H, slots_stride = e.cell.slots * e.H;
    convert(s.dh_n, scratch.direct, e.B * e.P);
    if (e.cell.has_c) convert(s.dc_n, scratch.c, e.B * e.H);
    const T* h_gates = s.dslots + e.cell.h_slot * e.H;
    NextGates<T> gates{rows, 0, false, h_gates, slots_stride, chunk_of(h_gates, slots_stride, gates_size)};
    for (int64_t n = 0; n < e.T; n++) {
      const int64_t t = rows.reverse ? n : e.T - 1 - n, row = t * e.B;
      const T* dy = offset(s.dy, row * e.width);
      gates.t = t;
      if (e.projected) {
        T* dh = s.dh + row * e.P;
        launch_state(s, gates, dy, dh);
        launch_step(s, t, rows_of<const T>(dh, e.P, e.B, e.P), s.w_hr_t, e.P, nullptr, nullptr);
      } else {
        launch_step(s, t, gates, s.w_hh_t, gates_size, dy, scratch.direct);
      }
    }
    gates.at_start = true;
    if (s.dh_0) launch_state(s, gates, nullptr, s.dh_0);
    if (e.cell.has_c && s.dc_0) convert(scratch.c, s.dc_0, e.B * e.H);
  }

 private:
  template <class To, class From>
  void convert(const From* from, To* to, int64_t n) const {
    run_pointwise(n, stream, Convert<To, From>{from, to});
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

  void launch_step(ForwardStep<N>& step) const {
    with_blocks(e.H, [&](const StepBlocks& blocks, auto rows) {
      step.unit_blocks = blocks.units;
      with_cell(p.cell, [&](auto tag) {
        using Tag = decltype(tag);
        constexpr int block_rows = decltype(rows)::value;
        using Cell = typename Tag::template Cell<ScalarMath<N>>;
        launch(forward_step<N, Tag::template Cell, block_rows>, dim3(unsigned(blocks.units * blocks.rows)), kThreads,
               ForwardTile<N, Cell, block_rows>::kSharedBytes, stream, step);
      });
    });
  }

  void launch_state(const BackwardScan<N>& s, const NextGates<T>& gates, const T* dy, T* to) const {
    const int64_t k = e.cell.gates * e.H;
    with_blocks(e.P, [&](const StepBlocks& blocks, auto rows) {
      constexpr int block_rows = decltype(rows)::value;
      launch(state_gradient<N, block_rows>, dim3(unsigned(blocks.units * blocks.rows)), kThreads,
             BackwardTile<N, block_rows>::kSharedBytes, stream,
             StateGradient<N>{e.P, k, blocks.units, s.w_hh_t, chunk_of(s.w_hh_t, k, k), gates, dy, e.width,
                              scratch.direct, to});
    });
  }

  template <class Source>
  void launch_step(const BackwardScan<N>& s, int64_t t, const Source& source, const T* w, int64_t k_size, const T* dy,
                   Sum* direct) const {
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
    step.dc = scratch.c;
    step.slots = s.slots + row * e.cell.slots * e.H;
    step.h = s.h;
    step.c_prev = s.c;
    step.h.t = step.c_prev.t = t;
    step.c = offset(s.c.steps, row * e.H);
    step.dslots = s.dslots + row * e.cell.slots * e.H;
    with_blocks(e.H, [&](const StepBlocks& blocks, auto rows) {
      step.unit_blocks = blocks.units;
      with_cell(p.cell, [&](auto tag) {
        using Tag = decltype(tag);
        constexpr int block_rows = decltype(rows)::value;
        constexpr bool projected = std::is_same_v<Source, RowOperand<T>>;
        if constexpr (!projected || Tag::template Cell<ScalarMath<N>>::kHasCellState) {  // only an LSTM is projected
          launch(backward_step<N, Tag::template Cell, Source, block_rows>, dim3(unsigned(blocks.units * blocks.rows)),
                 kThreads, BackwardTile<N, block_rows>::kSharedBytes, stream, step);
        }
      });
    });
  }

  const Problem& p;
  const Extents& e;
  const GeneralScratch<N> scratch;
  const cudaStream_t stream;
};

}  // namespace cuda
}  // namespace fastrnn
