// Backward pass of one layer in one direction.
//
// Threads split the hidden units here too, and the recurrent product over K: a thread multiplies the gate gradients of
// its own units with its own rows of W_hh, giving a partial dh_{t-1} of all units; the owner of a unit sums the partial
// results (in the order of the threads) when it differentiates step t-1. So a step exchanges B*P numbers a thread and
// meets once. Weight gradients and dx follow a time chunk at a time, while its gate gradients are in cache. Where an
// index says which rows of x are read, gate gradients are summed for each of these, and W_ih's and dx come last.
#pragma once

#include "cpu/layer.h"
#include "cpu/weight_gradients.h"

namespace fastrnn {
namespace FASTRNN_ISA {

template <class T, template <class> class CellOf>
class BackwardLayer {
  using Cell = CellOf<SimdMath<T>>;
  using G = Geometry<Cell>;
  using V = Vec<T>;
  static constexpr int w = kWidth<T>;
  static constexpr int kSlots = G::kSlots;
  static constexpr int64_t kXWidth = G::kXSlots * w, kHWidth = G::kHSlots * w;
  static constexpr int64_t kPartRows = 128;         // of a piece's gate gradients: 320 KB at most
  static constexpr int64_t kOnceBytes = 512 << 10;  // of weights that are packed to be used at once

 public:
  BackwardLayer(const BackwardArgs& args, Team& team, int tid)
      : a(args),
        s(args.steps),
        team(team),
        tid(tid),
        blocks((a.hidden_size + w - 1) / w),
        units(share(blocks, team, tid)),
        input_panels{a.input_size, kPanelVectors},
        state_panels{a.state_size, kPanelVectors},
        states(share(state_panels.vectors(), team, tid)),
        x_once(a.packing == Packing::now && (a.index || s.chunks == 1) && input_rows() <= kPartRows &&
               by_columns(input_rows())),
        h_once(a.packing == Packing::now && s.seq_len == 1),
        weight_gradients(args, team, tid, units, states) {}

  void run() {
    if (s.rows == 0) return;
    pack();
    for (int64_t i = units.begin * kSlots * w; i < units.end * kSlots * w; i++) static_cast<T*>(a.bias_sums)[i] = 0;
    if (a.index) {
      clear(inputs().at(units.begin, 0), inputs().at(units.end, 0));
      clear(input_part(0), input_part(a.inputs));
    }
    team.barrier(tid);
    const Walk chunks{!a.reverse, s.chunks};
    int64_t after = -1;  // the step differentiated before t: the one that follows it in the direction of the layer
    for (int64_t i = 0; i < s.chunks; i++) {
      const int64_t c = chunks[i], t0 = s.chunk_step[c];
      chunk_row0 = s.offset[t0];
      gates = gate_chunk<T, kSlots>(s, a.gates, blocks, c, true);
      dgates = {static_cast<T*>(a.dgates), a.dgates_rows};
      const Walk steps{!a.reverse, s.chunk_step[c + 1] - t0};
      for (int64_t j = 0; j < steps.n; j++) {
        const int64_t t = t0 + steps[j];
        step(t, after);
        team.barrier(tid);
        after = t;
      }
      weight_gradients.add(c, dgates);
      if (a.index) {
        add_to_inputs(s.offset[s.chunk_step[c + 1]]);
      } else if (a.dx) {
        input_gradient(s.offset[s.chunk_step[c + 1]] - chunk_row0);
        team.barrier(tid);
      }
    }
    if (a.index) {
      weight_gradients.add_inputs(inputs());
      chunk_row0 = 0;
      dgates = inputs();
      if (a.dx) {
        input_gradient(a.inputs);
        team.barrier(tid);
        clear_unread(share(a.inputs, team, tid));
      }
    }
    for (int64_t sb = states.begin; a.need_dh_0 && sb < states.end; sb++) {
      for (int64_t b = 0; b < s.count[after]; b++) store(carry(sb, b), arriving(after, sb, b));
    }
    add_bias_gradients();
  }

 private:
  void pack() {
    const Weights& weights = a.weights;
    if (!h_once) pack_recurrent(units);
    if (a.dx && !x_once) pack_input({0, blocks}, share(input_panels.count(), team, tid));
    for (int64_t u = units.begin; a.projected && u < units.end; u += kMaxVectors) {
      const int nv = unit_group(u);
      if (stands(u)) continue;
      for (int64_t k = 0; k < a.state_size; k++) {
        pack_row(static_cast<const T*>(weights.w_hr) + k * a.hidden_size + u * w, a.hidden_size - u * w, nv,
                 projection_panel(u) + k * nv * w);
      }
    }
  }

  // Whether columns of a matrix are read as they stand: whole vectors can.
  bool stands(const ColumnPanels<T>& panels, int64_t j) const {
    return a.packing == Packing::none && panels.columns(j) == panels.nv(j) * w;
  }
  bool stands(int64_t u) const {  // of W_hr, unit_group(u)
    return a.packing == Packing::none && (u + unit_group(u)) * w <= a.hidden_size;
  }

  void pack_input(Range of, Range own_panels) {
    pack_gate_rows(a.weights.w_ih, Cell::kXSlot, of, input_panels, own_panels,
                   [&](int64_t j) { return input_panel(j, of.begin); });
  }
  void pack_recurrent(Range of) {
    pack_gate_rows(a.weights.w_hh, Cell::kHSlot, of, state_panels, {0, state_panels.count()},
                   [&](int64_t j) { return state_panel(j); });
  }

  // Panels `js` of a gate matrix (G*H, panels.n), from panel(j) on: the rows of unit blocks `of`, in the order of their
  // gate gradients.
  template <class PanelOf>
  FASTRNN_INLINE void pack_gate_rows(const void* matrix, int first_slot, Range of, const ColumnPanels<T>& panels,
                                     Range js, PanelOf&& panel) {
    int64_t k = 0;
    for (int64_t u = of.begin; u < of.end; u++) {
      const int64_t valid = valid_lanes<T>(a.hidden_size, u);
      for (int gate = 0; gate < Cell::kGates; gate++) {
        const int64_t first = Cell::gate_of_slot(first_slot + gate) * a.hidden_size + u * w;
        const T* row = static_cast<const T*>(matrix) + first * panels.n;
        for (int lane = 0; lane < w; lane++, k++, row += panels.n) {
          for (int64_t j = js.begin; j < js.end; j++) {
            if (stands(panels, j)) continue;
            const int nv = panels.nv(j);
            pack_row(row + panels.first_column(j), lane < valid ? panels.columns(j) : 0, nv, panel(j) + k * nv * w);
          }
        }
      }
    }
  }

  // dgates of step t, then this thread's part of dh_{t-1}.
  void step(int64_t t, int64_t after) {
    if (after >= 0) {  // reverse direction only: rows whose walk began at `after`
      for (int64_t sb = states.begin; sb < states.end; sb++) {
        for (int64_t b = s.count[t]; b < s.count[after]; b++) store(carry(sb, b), arriving(after, sb, b));
      }
    }
    const int64_t before = step_before(a, t);
    Source<T> source[2];
    const int found = sources<T>(a, static_cast<const T*>(a.y), a.y_stride, true, t, before, source);
    if (a.projected) {
      project(t, after);
      team.barrier(tid);
      for (int64_t u = units.begin; u < units.end; u += kMaxVectors) {
        const int nv = unit_group(u);
        for (int k = 0; k < found; k++) {
          const Rows<T> dh{dhidden(s.offset[t] + source[k].rows.begin), state_width(), 0};
          gemm(dh, source[k].rows.size(), 1, a.state_size, projection_columns(u),
               [&](int64_t first, int64_t count, const T* tile) {
                 for (int i = 0; i < nv; i++) {
                   differentiate(t, u + i, source[k], {first, first + count},
                                 [&](int64_t r) { return load(tile + ((r - first) * nv + i) * w); });
                 }
               });
        }
      }
    } else {
      for (int64_t u = units.begin; u < units.end; u++) {
        for (int k = 0; k < found; k++) {
          const int64_t first = source[k].rows.begin;
          differentiate(t, u, source[k], {0, source[k].rows.size()},
                        [&](int64_t r) { return incoming(t, after, u, first + r); });
        }
      }
    }
    parity ^= 1;
    if (before < 0 && !a.need_dh_0) return;
    const Walk order{(t & 1) != 0, state_panels.count()};
    const EvenParts pieces(units.size(), h_once ? once_blocks(kHWidth * state_width()) : units.size());
    for (int64_t p = 0, u = units.begin; p < pieces.count; u += pieces.size(p), p++) {
      const Range of{u, u + pieces.size(p)};
      if (h_once) pack_recurrent(of);
      for (int64_t i = 0; i < order.n; i++) {
        const int64_t j = order[i];
        const int nv = state_panels.nv(j);
        const T* next = i + 1 < order.n ? state_panel(order[i + 1]) : nullptr;
        const Range fetched{states.begin + states.size() * i / order.n,
                            states.begin + states.size() * (i + 1) / order.n};
        multiply_gates(s.offset[t] - chunk_row0, s.count[t], of, Cell::kHSlot, a.weights.w_hh, state_panels, j,
                       {state_panel(j), nv, next}, [&](Piece piece, int64_t first, int64_t count, const T* tile) {
                         if (piece.first) fetch_output_gradient(before, {first, first + count}, fetched);
                         for (int64_t r = 0; r < count; r++) {
                           for (int v = 0; v < nv; v++) {
                             T* out = partial(tid, state_panels.first_vector(j) + v, first + r);
                             const V product = load(tile + (r * nv + v) * w);
                             store(out, piece.first && p == 0 ? product : load(out) + product);
                           }
                         }
                       });
      }
    }
  }

  // Unit blocks of a piece that is packed when its turn comes, of `block` numbers each.
  static int64_t once_blocks(int64_t block) { return max(1, kOnceBytes / (block * int64_t(sizeof(T)))); }

  // Rows of gate gradients, the kGates slots from first_slot on, of unit blocks `of`, times columns j of a gate matrix:
  // their panel or, where they stand as they are, gate by gate.
  template <class Epilogue>
  FASTRNN_INLINE void multiply_gates(int64_t row, int64_t rows, Range of, int first_slot, const void* matrix,
                                     const ColumnPanels<T>& panels, int64_t j, const Panel<T>& panel,
                                     Epilogue&& epilogue) {
    Rows<T> d{dgates.at(of.begin, row) + first_slot * w, GateBlock<T, kSlots>::kRow, dgates.block_stride()};
    if (!stands(panels, j)) return gemm_in_pieces(d, rows, of.size(), Cell::kGates * w, panel, epilogue);
    const int64_t unit = of.begin * w, n = min(of.end * w, a.hidden_size) - unit, whole = n / w;
    for (int gate = 0; gate < Cell::kGates; gate++, d.data += w) {
      const int64_t first_row = Cell::gate_of_slot(first_slot + gate) * a.hidden_size + unit;
      const T* columns = static_cast<const T*>(matrix) + first_row * panels.n + panels.first_column(j);
      const auto add = [&](int64_t from, int64_t blocks, int64_t k_per_block) {
        const Rows<T> part{d.data + from * d.block_stride, d.row_stride, d.block_stride};
        gemm(part, rows, blocks, k_per_block, {columns + from * w * panels.n, panel.nv, nullptr, nullptr, panels.n},
             [&](int64_t first, int64_t count, const T* tile) {
               epilogue(Piece{gate == 0 && from == 0, false}, first, count, tile);
             });
      };
      if (whole > 0) add(0, whole, w);
      if (whole * w < n) add(whole, 1, n - whole * w);
    }
  }

  // Rows of dy for the next step to be differentiated: too far apart for the hardware to foresee.
  FASTRNN_INLINE void fetch_output_gradient(int64_t t, Range rows, Range state_blocks) const {
    if (!a.dy || t < 0) return;
    for (int64_t b = rows.begin; b < min(rows.end, s.count[t]); b++) {
      const T* dy = static_cast<const T*>(a.dy) + (s.offset[t] + b) * a.dy_stride;
      for (int64_t sb = state_blocks.begin; sb < state_blocks.end; sb++) __builtin_prefetch(dy + sb * w, 0, 2);
    }
  }

  // Gradient of h_{t-1}, lanes of state block sb, as step t left it.
  FASTRNN_INLINE V arriving(int64_t t, int64_t sb, int64_t b) const {
    V dh = load(carry(sb, b));
    if (a.resets && a.resets[s.offset[t] + b]) return dh;  // h_{t-1} was not used
    for (int i = 0; i < team.size(); i++) dh += load(partial(i, sb, b));
    return dh;
  }

  // Gradient of h_t.
  FASTRNN_INLINE V incoming(int64_t t, int64_t after, int64_t sb, int64_t b) const {
    V dh = after >= 0 && b < s.count[after] ? arriving(after, sb, b) : load(carry(sb, b));
    if (a.dy) {
      const T* dy = static_cast<const T*>(a.dy) + (s.offset[t] + b) * a.dy_stride + sb * w;
      dh += load_first(dy, valid_lanes<T>(a.state_size, sb));
    }
    return dh;
  }

  // Projected: gathers dh_t; it has no other way into h_{t-1} than the gates.
  void project(int64_t t, int64_t after) {
    for (int64_t sb = states.begin; sb < states.end; sb++) {
      for (int64_t b = 0; b < s.count[t]; b++) {
        store(dhidden(s.offset[t] + b) + sb * w, incoming(t, after, sb, b));
        store(carry(sb, b), V{});
      }
    }
  }

  // The cell's gradient for unit block u of the source's rows `rows`; dh(r) is the gradient of its output.
  template <class Dh>
  FASTRNN_INLINE void differentiate(int64_t t, int64_t u, const Source<T>& from, Range rows, Dh&& dh) {
    const int64_t valid = valid_lanes<T>(a.hidden_size, u);
    const T* cells = static_cast<const T*>(a.cells) + u * a.cell_rows * w;
    V sums[kSlots] = {};
    for (int64_t r = rows.begin; r < rows.end; r++) {
      const int64_t b = from.rows.begin + r, row = s.offset[t] + b;
      const bool reset = a.resets && a.resets[row];
      const T* saved = gates.at(u, row - chunk_row0);
      V slot[kSlots], dslot[kSlots], h_prev{}, c_prev{}, c{}, dc{}, dh_prev;
      FASTRNN_UNROLL
      for (int k = 0; k < kSlots; k++) slot[k] = load(saved + k * w);
      if (Cell::kUsesPreviousState) h_prev = load_first(from.h + r * from.h_stride + u * w, valid);
      T* dc_row = static_cast<T*>(a.dc) + (u * s.batch + b) * w;
      if (Cell::kHasCellState) {
        if (!reset) c_prev = load(cells + (from.cell_row + r) * w);
        c = load(cells + (s.batch + row) * w);
        dc = load(dc_row);
      }
      Cell::backward(slot, h_prev, c_prev, c, dh(r), dc, dslot, dh_prev);
      if (valid < w) {
        // Padding lanes of a row with NaN or Inf are not finite; every product that follows sums over them.
        FASTRNN_UNROLL
        for (int k = 0; k < kSlots; k++) dslot[k] = first_lanes<T>(dslot[k], valid);
      }
      T* out = dgates.at(u, row - chunk_row0);
      FASTRNN_UNROLL
      for (int k = 0; k < kSlots; k++) {
        store(out + k * w, dslot[k]);
        sums[k] += dslot[k];
      }
      if (Cell::kHasCellState) store(dc_row, reset ? V{} : dc);
      if (!a.projected) store(carry(u, b), reset ? V{} : dh_prev);
    }
    T* total = static_cast<T*>(a.bias_sums) + u * kSlots * w;
    FASTRNN_UNROLL
    for (int k = 0; k < kSlots; k++) store(total + k * w, load(total + k * w) + sums[k]);
  }

  // ---- after the steps of a chunk

  // Gate gradients of rows chunk_row0..end join those of the rows of x that were read: some rows' in sums of their own
  // first, so that chains of additions stay short. These are zero before and after.
  void add_to_inputs(int64_t end) {
    const EvenParts parts(end - chunk_row0, kChain);
    for (int64_t u = units.begin; u < units.end; u++) {
      int64_t row = chunk_row0;
      for (int64_t i = 0; i < parts.count; row += parts.size(i), i++) {
        const int64_t n = parts.size(i);
        for (int64_t r = row; r < row + n; r++) {
          add_to(input_part(a.index[r]), dgates.at(u, r - chunk_row0) + Cell::kXSlot * w, kXWidth);
        }
        // Of many rows of x only those that were read; one that was read twice adds zeros the second time.
        const bool all = a.inputs <= n;
        for (int64_t k = 0; k < (all ? a.inputs : n); k++) {
          const int64_t input = all ? k : a.index[row + k];
          T* const part = input_part(input);
          add_to(inputs().at(u, input) + Cell::kXSlot * w, part, kXWidth);
          clear(part, part + kXWidth);
        }
      }
    }
  }

  static FASTRNN_INLINE void add_to(T* sum, const T* terms, int64_t n) {
    for (int64_t k = 0; k < n; k += w) store(sum + k, load(sum + k) + load(terms + k));
  }
  static FASTRNN_INLINE void clear(T* begin, T* end) {
    for (; begin < end; begin += w) store(begin, V{});
  }

  // Rows of dx that belong to nothing: a gradient of 0 may have met NaN in W_ih.
  void clear_unread(Range rows) {
    for (int64_t row = rows.begin; row < rows.end; row++) {
      T* out = static_cast<T*>(a.dx) + row * a.x_stride;
      for (int64_t k = 0; !a.inputs_read[row] && k < a.input_size; k++) out[k] = 0;
    }
  }

  // dx = dgates W_ih. Some rows and a piece of the units at a time, whose gate gradients stay in cache while the panels
  // pass.
  void input_gradient(int64_t rows) {
    const int64_t panels = input_panels.count();
    if (rows == 0) return;
    const bool columns = by_columns(rows);
    const Range own_panels = columns ? share(panels, team, tid) : Range{0, panels};
    const Range own_rows = columns ? Range{0, rows} : share(rows, team, tid);
    const EvenParts parts(own_rows.size(), kPartRows);
    const int64_t block_bytes = kXWidth * kPanelVectors * kVectorBytes;
    const EvenParts pieces(blocks, x_once ? once_blocks(kXWidth * max(1, own_panels.size()) * kPanelVectors * w)
                                   : rows <= kMaxRows ? blocks
                                                      : max(1, kPanelBytes / block_bytes));
    int64_t row = own_rows.begin;
    for (int64_t p = 0; p < parts.count; row += parts.size(p), p++) {
      int64_t u = 0;
      for (int64_t i = 0; i < pieces.count; u += pieces.size(i), i++) {
        if (x_once) pack_input({u, u + pieces.size(i)}, own_panels);
        for (int64_t j = own_panels.begin; j < own_panels.end; j++) {
          const T* next = j + 1 < own_panels.end ? input_panel(j + 1, u) : nullptr;
          add_input_gradient(row, parts.size(p), {u, u + pieces.size(i)}, j, next);
        }
      }
    }
  }

  // Whether threads split the columns of dx rather than its rows.
  bool by_columns(int64_t rows) const {
    return unevenness(input_panels.count()) <= unevenness(EvenParts(rows, best_rows(kPanelVectors, rows)).count);
  }

  // The largest share of n things over the mean share: 1 is best.
  double unevenness(int64_t n) const {
    const int64_t largest = (n + team.size() - 1) / team.size();
    return double(largest * team.size()) / double(n);
  }

  void add_input_gradient(int64_t row, int64_t rows, Range of, int64_t j, const T* next) {
    const int nv = input_panels.nv(j);
    T* dx = static_cast<T*>(a.dx) + (chunk_row0 + row) * a.x_stride + input_panels.first_column(j);
    multiply_gates(row, rows, of, Cell::kXSlot, a.weights.w_ih, input_panels, j, {input_panel(j, of.begin), nv, next},
                   [&](Piece piece, int64_t first, int64_t count, const T* tile) {
                     for (int64_t r = 0; r < count; r++) {
                       T* out = dx + (first + r) * a.x_stride;
                       add_or_put_row(!piece.first || of.begin > 0 || a.add_dx, tile + r * nv * w, nv,
                                      input_panels.columns(j), out);
                     }
                   });
  }

  void add_bias_gradients() {
    for (int64_t u = units.begin; u < units.end; u++) {
      const int64_t valid = valid_lanes<T>(a.hidden_size, u);
      for (int slot = 0; slot < kSlots; slot++) {
        const int64_t first = Cell::gate_of_slot(slot) * a.hidden_size + u * w;
        const T* sum = static_cast<const T*>(a.bias_sums) + (u * kSlots + slot) * w;
        T *b_ih = static_cast<T*>(a.grads.b_ih), *b_hh = static_cast<T*>(a.grads.b_hh);
        if (b_ih && G::from_x(slot)) add_or_put_row(a.add_grads, sum, 1, valid, b_ih + first);
        if (b_hh && G::from_h(slot)) add_or_put_row(a.add_grads, sum, 1, valid, b_hh + first);
      }
    }
  }

  int64_t input_rows() const { return a.index ? a.inputs : s.rows; }
  T* input_part(int64_t input) const { return static_cast<T*>(a.input_parts) + (tid * a.inputs + input) * kXWidth; }
  GateBlock<T, kSlots> inputs() const { return {static_cast<T*>(a.input_gates), a.inputs | 1}; }
  int unit_group(int64_t u) const { return int(min(kMaxVectors, units.end - u)); }
  int64_t state_width() const { return state_panels.vectors() * w; }
  T* carry(int64_t sb, int64_t b) const { return static_cast<T*>(a.dh) + (sb * s.batch + b) * w; }
  T* partial(int thread, int64_t sb, int64_t b) const {
    const int64_t block = (parity * team.size() + thread) * state_panels.vectors() + sb;
    return static_cast<T*>(a.partial) + (block * s.batch + b) * w;
  }
  T* dhidden(int64_t row) const { return static_cast<T*>(a.dhidden) + (row - chunk_row0) * state_width(); }
  T* state_panel(int64_t j) const {
    return static_cast<T*>(a.w_hh_panels) + units.begin * kHWidth * state_width() +
           state_panels.offset(j, units.size() * kHWidth);
  }
  // From unit block u on.
  T* input_panel(int64_t j, int64_t u) const {
    return static_cast<T*>(a.w_ih_panels) + input_panels.offset(j, blocks * kXWidth) +
           (x_once ? 0 : u * kXWidth * input_panels.nv(j) * w);
  }
  Panel<T> projection_columns(int64_t u) const {
    const int nv = unit_group(u);
    if (!stands(u)) return {projection_panel(u), nv, nullptr};
    return {static_cast<const T*>(a.weights.w_hr) + u * w, nv, nullptr, nullptr, a.hidden_size};
  }
  T* projection_panel(int64_t u) const { return static_cast<T*>(a.w_hr_panels) + u * a.state_size * w; }

  const BackwardArgs& a;
  const Steps& s;
  Team& team;
  const int tid;
  const int64_t blocks;  // of w units
  const Range units;     // of blocks: this thread's
  const ColumnPanels<T> input_panels, state_panels;
  const Range states;  // blocks of h whose gradient this thread sums; without a projection, its units
  // Panels that are used once are packed piece by piece, each in the place of the last: they do not leave the cache.
  const bool x_once, h_once;
  WeightGradients<T, Cell> weight_gradients;
  GateBlock<T, kSlots> gates{}, dgates{};
  int64_t chunk_row0 = 0;
  int parity = 0;
};

template <class T, template <class> class CellOf>
void backward_layer(const BackwardArgs& args, Team& team, int tid) {
  BackwardLayer<T, CellOf>(args, team, tid).run();
}

}  // namespace FASTRNN_ISA
}  // namespace fastrnn
