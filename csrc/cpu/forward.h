// Forward pass of one layer in one direction.
//
// Threads split the hidden units; a thread packs, multiplies and activates its own units only, and meets the others
// once a time step (twice with a projection), when h_t is complete. W_ih x is computed a time chunk ahead, so that it
// is still in cache when the recurrence reads it; where an index says which rows of x are read, all of it before the
// first step. A tile of the recurrence holds all gates of its units: the cell is
// its epilogue.
#pragma once

#include "cpu/layer.h"

namespace fastrnn {
namespace FASTRNN_ISA {

template <class T, template <class> class CellOf>
class ForwardLayer {
  using Cell = CellOf<SimdMath<T>>;
  using G = Geometry<Cell>;
  using V = Vec<T>;
  static constexpr int w = kWidth<T>;
  static constexpr int kSlots = G::kSlots;

 public:
  ForwardLayer(const ForwardArgs& args, Team& team, int tid)
      : a(args),
        s(args.steps),
        team(team),
        tid(tid),
        blocks((a.hidden_size + w - 1) / w),
        units(a.by_rows ? Range{0, blocks} : share(blocks, team, tid)),
        batch_rows(a.by_rows ? share(s.batch, team, tid) : Range{0, s.batch}),
        state_panels{a.state_size},
        projections(share(a.projected ? state_panels.count() : 0, team, tid)),
        x_once(a.packing == Packing::now && !a.by_rows && (a.index || s.chunks == 1)),
        h_once(a.packing == Packing::now && !a.by_rows && s.seq_len == 1) {}

  void run() {
    if (a.packing != Packing::done) pack();
    if (s.rows == 0) return;
    if (a.resets) begin_resets();
    team.barrier(tid);
    if (a.index) {
      input_product(0, a.inputs, inputs());
      if (a.by_rows) team.barrier(tid);
    }
    const Walk chunks{a.reverse, s.chunks};
    int64_t before = -1;
    for (int64_t i = 0; i < s.chunks; i++) {
      const int64_t c = chunks[i];
      const auto gates = gate_chunk<T, kSlots>(s, a.gates, blocks, c, a.training);
      const int64_t t0 = s.chunk_step[c];
      if (!a.index) {
        input_product(s.offset[t0], s.offset[s.chunk_step[c + 1]], gates);
        if (a.by_rows) team.barrier(tid);  // rows of (t, b) were split otherwise
      }
      const Walk steps{a.reverse, s.chunk_step[c + 1] - t0};
      for (int64_t j = 0; j < steps.n; j++) {
        const int64_t t = t0 + steps[j];
        recurrent_step(t, before, gates, s.offset[t] - s.offset[t0]);
        if (!a.by_rows) team.barrier(tid);
        if (a.projected) {
          project(t);
          team.barrier(tid);
        }
        before = t;
      }
      if (a.by_rows) team.barrier(tid);
    }
  }

  void pack() {
    Range packed = units;
    if (a.by_rows) {
      const Range groups = share((blocks + G::kUnits - 1) / G::kUnits, team, tid);
      packed = {groups.begin * G::kUnits, min(groups.end * G::kUnits, blocks)};
    }
    for (int64_t u = packed.begin; u < packed.end; u += G::kUnits) {
      const int n = group_size(u);
      if (a.packing == Packing::now && !x_once) pack_input(u);
      if (a.packing == Packing::now && !h_once) pack_recurrent(u);
      for (int64_t block = u; block < u + n; block++) pack_bias(block);
    }
    for (int64_t j = projections.begin; a.packing == Packing::now && j < projections.end; j++) {
      pack_transposed(projection_rows(j), a.hidden_size, state_panels.nv(j), projection_panel(j));
    }
  }

 private:
  void pack_input(int64_t u) { pack_transposed(input_rows(u), a.input_size, group_size(u) * Cell::kGates, x_panel(u)); }
  void pack_recurrent(int64_t u) {
    pack_transposed(recurrent_rows(u), a.state_size, group_size(u) * Cell::kGates, h_panel(u));
  }

  // Every slot's bias: b_ih where W_ih feeds it, b_hh where W_hh does.
  void pack_bias(int64_t block) {
    const T *b_ih = static_cast<const T*>(a.weights.b_ih), *b_hh = static_cast<const T*>(a.weights.b_hh);
    const int64_t valid = valid_lanes<T>(a.hidden_size, block);
    for (int slot = 0; slot < kSlots; slot++) {
      const int64_t first = Cell::gate_of_slot(slot) * a.hidden_size + block * w;
      V sum{};
      if (b_ih && G::from_x(slot)) sum += load_first(b_ih + first, valid);
      if (b_hh && G::from_h(slot)) sum += load_first(b_hh + first, valid);
      store(bias(block) + slot * w, sum);
    }
  }

  // h_{t-1} of the first step: the initial state, zeroed where reset. Later ones are written with h_t.
  void begin_resets() {
    T* h_prev = static_cast<T*>(a.h_prev);
    const Range rows = share(s.count[0], team, tid);
    for (int64_t r = rows.begin; r < rows.end; r++) {
      const T* h = static_cast<const T*>(a.h_0) + r * a.state_size;
      for (int64_t k = 0; k < a.state_size; k++) h_prev[r * a.state_size + k] = a.resets[r] ? T(0) : h[k];
    }
  }

  // W_ih x + b of rows begin..end of x.
  void input_product(int64_t begin, int64_t end, GateBlock<T, kSlots> gates) {
    const Range rows = a.by_rows ? share(end - begin, team, tid) : Range{0, end - begin};
    const Rows<T> x{static_cast<const T*>(a.x) + (begin + rows.begin) * a.x_stride, a.x_stride, 0};
    for (int64_t u = units.begin; u < units.end; u += G::kUnits) {
      const int n = group_size(u);
      const T* next = !x_once && u + n < units.end ? x_panel(u + n) : nullptr;
      if (x_once) pack_input(u);
      MatrixRows<T> unpacked;
      if (a.packing == Packing::none) unpacked = input_rows(u);
      gemm_in_pieces(x, rows.size(), 1, a.input_size, columns(x_panel(u), n * Cell::kGates, next, unpacked),
                     [&](Piece piece, int64_t first, int64_t count, const T* tile) {
                       for (int i = 0; i < n; i++) {
                         for (int64_t r = 0; r < count; r++) {
                           T* row = gates.at(u + i, rows.begin + first + r);
                           const T* before = piece.first ? bias(u + i) : row;
                           const T* product = tile + (r * n + i) * Cell::kGates * w;
                           FASTRNN_UNROLL
                           for (int slot = 0; slot < kSlots; slot++) {
                             V sum = load(before + slot * w);
                             if (G::from_x(slot)) sum += load(product + (slot - Cell::kXSlot) * w);
                             store(row + slot * w, sum);
                           }
                         }
                       }
                     });
    }
  }

  void recurrent_step(int64_t t, int64_t before, GateBlock<T, kSlots> gates, int64_t chunk_row) {
    Source<T> source[2];
    const int found = sources<T>(a, static_cast<const T*>(a.y), a.y_stride, a.training, t, before, source);
    for (int k = 0; k < found; k++) source[k].keep(batch_rows);
    // Zig-zag: what the last step left in cache is used first.
    const int64_t groups = (units.size() + G::kUnits - 1) / G::kUnits;
    const Walk order{(t & 1) != 0, groups};
    for (int64_t i = 0; i < groups; i++) {
      const int64_t u = units.begin + order[i] * G::kUnits;
      const int n = group_size(u);
      const T* next = !h_once && i + 1 < groups ? h_panel(units.begin + order[i + 1] * G::kUnits) : nullptr;
      if (h_once) pack_recurrent(u);
      MatrixRows<T> unpacked;
      if (a.packing == Packing::none) unpacked = recurrent_rows(u);
      for (int k = 0; k < found; k++) {
        const Source<T>& from = source[k];
        const int64_t row0 = s.offset[t] + from.rows.begin, row_end = s.offset[t] + from.rows.end;
        if (a.index) fetch_inputs(u, n, row0, min(row0 + kMaxRows, row_end));
        gemm_in_pieces(Rows<T>{from.h, from.h_stride, 0}, from.rows.size(), 1, a.state_size,
                       columns(h_panel(u), n * Cell::kGates, next, unpacked),
                       [&](Piece piece, int64_t first, int64_t count, const T* tile) {
                         if (a.index && piece.first) {
                           fetch_inputs(u, n, row0 + first + count, min(row0 + first + 2 * count, row_end));
                         }
                         for (int b = 0; b < n; b++) {
                           for (int64_t r = 0; r < count; r++) {
                             const int64_t of_step = from.rows.begin + first + r;
                             T* row = gates.at(u + b, chunk_row + of_step);
                             const T* sum = a.index && piece.first ? input(u + b, s.offset[t] + of_step) : row;
                             const T* product = tile + (r * n + b) * Cell::kGates * w;
                             if (piece.last) {
                               activate(t, u + b, from, first + r, sum, row, product);
                             } else {
                               add_product(sum, product, row);
                             }
                           }
                         }
                       });
      }
    }
  }

  // What an index finds stands where the hardware does not foresee it.
  FASTRNN_INLINE void fetch_inputs(int64_t u, int n, int64_t begin, int64_t end) const {
    for (int64_t row = begin; row < end; row++) {
      for (int i = 0; i < n; i++) {
        for (int k = 0; k < kSlots * kVectorBytes; k += kLine) {
          __builtin_prefetch(reinterpret_cast<const char*>(input(u + i, row)) + k);
        }
      }
    }
  }

  static FASTRNN_INLINE V slot_sum(int k, const T* sum, const T* product) {
    const V before = load(sum + k * w);
    return G::from_h(k) ? before + load(product + (k - Cell::kHSlot) * w) : before;
  }

  static FASTRNN_INLINE void add_product(const T* sum, const T* product, T* gate_row) {
    FASTRNN_UNROLL
    for (int k = 0; k < kSlots; k++) {
      if (G::from_h(k) || sum != gate_row) store(gate_row + k * w, slot_sum(k, sum, product));
    }
  }

  // The cell for one unit block of one row; `i` counts from the source's first row.
  FASTRNN_INLINE void activate(int64_t t, int64_t u, const Source<T>& from, int64_t i, const T* sum, T* gate_row,
                               const T* product) {
    const int64_t b = from.rows.begin + i, row = s.offset[t] + b;
    const int64_t valid = valid_lanes<T>(a.hidden_size, u);
    V slot[kSlots];
    FASTRNN_UNROLL
    for (int k = 0; k < kSlots; k++) slot[k] = slot_sum(k, sum, product);
    V h_prev{}, c_prev{}, c{}, h;
    if (Cell::kUsesPreviousState) h_prev = load_first(from.h + i * from.h_stride + u * w, valid);
    T* cells = static_cast<T*>(a.cells) + u * a.cell_rows * w;
    if (Cell::kHasCellState && !(a.resets && a.resets[row])) c_prev = load(cells + (from.cell_row + i) * w);
    Cell::forward(slot, h_prev, c_prev, c, h);
    if (Cell::kHasCellState) store(cells + (a.training ? s.batch + row : b) * w, c);
    if (a.training) {
      FASTRNN_UNROLL
      for (int k = 0; k < kSlots; k++) store(gate_row + k * w, slot[k]);
    }
    if (Cell::kHasCellState && a.projected) {
      store(hidden(t) + (b * blocks + u) * w, h);
    } else {
      put_state(t, b, u * w, h, valid);
    }
  }

  void project(int64_t t) {
    for (int64_t j = projections.begin; j < projections.end; j++) {
      const int nv = state_panels.nv(j);
      MatrixRows<T> unpacked;
      if (a.packing == Packing::none) unpacked = projection_rows(j);
      gemm(Rows<T>{hidden(t), blocks * w, 0}, s.count[t], 1, a.hidden_size,
           columns(projection_panel(j), nv, nullptr, unpacked), [&](int64_t first, int64_t count, const T* tile) {
             for (int64_t r = 0; r < count; r++) {
               for (int v = 0; v < nv; v++) {
                 const int64_t column = state_panels.first_column(j) + v * w;
                 put_state(t, first + r, column, load(tile + (r * nv + v) * w), min(w, a.state_size - column));
               }
             }
           });
    }
  }

  FASTRNN_INLINE void put_state(int64_t t, int64_t b, int64_t column, V h, int64_t valid) {
    store_first(static_cast<T*>(a.y) + (s.offset[t] + b) * a.y_stride + column, h, valid);
    if (a.resets && t + 1 < s.seq_len && b < s.count[t + 1]) {
      T* next = static_cast<T*>(a.h_prev) + (h_prev_row(s, a.training, t + 1) + b) * a.state_size;
      store_first(next + column, a.resets[s.offset[t + 1] + b] ? V{} : h, valid);
    }
  }

  GateBlock<T, kSlots> inputs() const { return {static_cast<T*>(a.input_gates), a.inputs | 1}; }
  const T* input(int64_t u, int64_t row) const { return inputs().at(u, a.index[row]); }
  int group_size(int64_t u) const { return int(min(G::kUnits, units.end - u)); }

  // The weights of the panels below, as they stand.
  MatrixRows<T> gate_rows(const void* matrix, int64_t width, int first_slot, int64_t u) const {
    MatrixRows<T> rows{};
    rows.stride = width;
    for (int v = 0; v < group_size(u) * Cell::kGates; v++) {
      const int64_t block = u + v / Cell::kGates;
      const int64_t first = Cell::gate_of_slot(first_slot + v % Cell::kGates) * a.hidden_size + block * w;
      rows.row[v] = static_cast<const T*>(matrix) + first * width;
      rows.valid[v] = valid_lanes<T>(a.hidden_size, block);
    }
    return rows;
  }
  MatrixRows<T> input_rows(int64_t u) const { return gate_rows(a.weights.w_ih, a.input_size, Cell::kXSlot, u); }
  MatrixRows<T> recurrent_rows(int64_t u) const { return gate_rows(a.weights.w_hh, a.state_size, Cell::kHSlot, u); }
  MatrixRows<T> projection_rows(int64_t j) const {
    MatrixRows<T> rows{};
    rows.stride = a.hidden_size;
    for (int v = 0; v < state_panels.nv(j); v++) {
      const int64_t first = state_panels.first_column(j) + v * w;
      rows.row[v] = static_cast<const T*>(a.weights.w_hr) + first * a.hidden_size;
      rows.valid[v] = min(w, a.state_size - first);
    }
    return rows;
  }
  Panel<T> columns(const T* panel, int nv, const T* next, const MatrixRows<T>& unpacked) const {
    return a.packing == Packing::none ? Panel<T>{nullptr, nv, nullptr, &unpacked} : Panel<T>{panel, nv, next};
  }

  T* x_panel(int64_t u) const {
    return static_cast<T*>(a.w_ih_panels) + (x_once ? units.begin : u) * a.input_size * Cell::kGates * w;
  }
  T* h_panel(int64_t u) const {
    return static_cast<T*>(a.w_hh_panels) + (h_once ? units.begin : u) * a.state_size * Cell::kGates * w;
  }
  T* bias(int64_t u) const { return static_cast<T*>(a.bias_panels) + u * kSlots * w; }
  T* projection_panel(int64_t j) const {
    return static_cast<T*>(a.w_hr_panels) + state_panels.offset(j, a.hidden_size);
  }
  T* hidden(int64_t t) const { return static_cast<T*>(a.hidden) + (a.training ? s.offset[t] * blocks * w : 0); }

  const ForwardArgs& a;
  const Steps& s;
  Team& team;
  const int tid;
  const int64_t blocks;    // of w units
  const Range units;       // of blocks: this thread's
  const Range batch_rows;  // this thread's
  const ColumnPanels<T> state_panels;
  const Range projections;
  // Panels that are used once are packed right before, each in the place of the last: they do not leave the cache.
  const bool x_once, h_once;
};

template <class T, template <class> class CellOf>
void forward_layer(const ForwardArgs& args, Team& team, int tid) {
  ForwardLayer<T, CellOf>(args, team, tid).run();
}

}  // namespace FASTRNN_ISA
}  // namespace fastrnn
