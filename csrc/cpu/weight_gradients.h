// Weight gradients of one layer in one direction, from the rows of a time chunk: dW += sum over rows of d^T x.
//
// All threads pack x, h_{t-1} and, projected, the cell's output of some rows into panels of columns. Then each packs
// the gate gradients of a few of its own unit blocks into tiles, and all panels pass by: the tiles stay in the
// second-level cache and the next panel arrives meanwhile. The matrices, which may be larger than the caches, are read
// and written once for every outer_rows rows.
#pragma once

#include "cpu/layer.h"

namespace fastrnn {
namespace FASTRNN_ISA {

template <class T, class Cell>
class WeightGradients {
  using G = Geometry<Cell>;
  static constexpr int w = kWidth<T>;
  static constexpr int kSlots = G::kSlots;
  static constexpr int kTileRows = best_rows(kPanelVectors, Cell::kGates* w, w);
  using Tiles = PackedRows<T, kTileRows>;

 public:
  WeightGradients(const BackwardArgs& args, Team& team, int tid, Range units, Range states)
      : a(args),
        s(args.steps),
        team(team),
        tid(tid),
        blocks((a.hidden_size + w - 1) / w),
        units(units),
        states(states),
        input_panels{a.input_size, kPanelVectors},
        state_panels{a.state_size, kPanelVectors},
        unit_panels{a.hidden_size, kPanelVectors},
        x_columns(static_cast<T*>(a.columns)),
        h_columns(x_columns + input_panels.vectors() * w * a.outer_rows),
        m_columns(h_columns + state_panels.vectors() * w * a.outer_rows),
        tiles(static_cast<T*>(a.outer_tiles) + tid * tiles_size(a.outer_rows)),
        adds(a.add_grads),
        adds_input(a.add_grads) {}

  // Adds what chunk c gives. Threads have met since its gate gradients were written and, unless it has no rows, meet
  // before this returns.
  void add(int64_t c, GateBlock<T, kSlots> dgates) {
    const bool input = a.grads.w_ih && !a.index;  // else once, at the end
    if (!input && !a.grads.w_hh && !a.grads.w_hr) return team.barrier(tid);
    const int64_t chunk_row0 = s.offset[s.chunk_step[c]], end = s.offset[s.chunk_step[c + 1]];
    for (int64_t row = chunk_row0; row < end; row += a.outer_rows) {
      const int64_t n = min(a.outer_rows, end - row);
      const Range own = share(n, team, tid);
      if (input) pack_input_columns(row, own, n);
      if (a.grads.w_hr) pack_hidden_columns(row, own, n);
      if (a.grads.w_hh) pack_previous_states(c, row, own, n);
      team.barrier(tid);
      for (int64_t u = units.begin; u < units.end; u += G::kUnits) {
        const Range group{u, min(u + G::kUnits, units.end)};
        if (input) add_input(dgates, group, row - chunk_row0, n);
        if (a.grads.w_hh) {
          if (!input || Cell::kHSlot != Cell::kXSlot) pack_gates(dgates, group, Cell::kHSlot, row - chunk_row0, n);
          add_gates(group, Cell::kHSlot, n, h_columns, state_panels, a.grads.w_hh, adds);
        }
      }
      if (a.grads.w_hr) add_projection(row - chunk_row0, n);
      adds = true;
      adds_input |= input;
      team.barrier(tid);
    }
  }

  // With an index: adds what the rows of x give, of which `dgates` has the sums. Threads meet before this returns.
  void add_inputs(GateBlock<T, kSlots> dgates) {
    if (!a.grads.w_ih) return team.barrier(tid);
    for (int64_t row = 0; row < a.inputs; row += a.outer_rows) {
      const int64_t n = min(a.outer_rows, a.inputs - row);
      pack_input_columns(row, share(n, team, tid), n);
      team.barrier(tid);
      for (int64_t u = units.begin; u < units.end; u += G::kUnits) {
        add_input(dgates, {u, min(u + G::kUnits, units.end)}, row, n);
      }
      adds_input = true;
      team.barrier(tid);
    }
  }

  // Elements of BackwardArgs::columns for one row.
  static int64_t columns_size(int64_t x, int64_t h, int64_t m) {
    return (ColumnPanels<T>{x}.vectors() + ColumnPanels<T>{h}.vectors() + ColumnPanels<T>{m}.vectors()) * w;
  }

  // Elements of BackwardArgs::outer_tiles for one thread: up to kMaxVectors vectors, of any cell.
  static int64_t tiles_size(int64_t rows) { return kMaxVectors * Tiles::size(w, rows); }

 private:
  void pack_input_columns(int64_t row, Range own, int64_t n) {
    for (int64_t i = own.begin; i < own.end; i++) {
      // What nothing reads must not meet a gradient of 0 as NaN.
      const bool read = !a.index || a.inputs_read[row + i];
      const T* x = static_cast<const T*>(a.x) + (row + i) * a.x_stride;
      pack_columns(read ? x : nullptr, input_panels, i, n, x_columns);
    }
  }

  void pack_hidden_columns(int64_t row, Range own, int64_t n) {
    for (int64_t i = own.begin; i < own.end; i++) {
      pack_columns(static_cast<const T*>(a.hidden) + (row + i) * blocks * w, unit_panels, i, n, m_columns);
    }
  }

  // Row i of columns; null: zeros.
  static void pack_columns(const T* source, const ColumnPanels<T>& panels, int64_t i, int64_t n, T* columns) {
    for (int64_t j = 0; j < panels.count(); j++) {
      const int nv = panels.nv(j);
      pack_row(source ? source + panels.first_column(j) : nullptr, source ? panels.columns(j) : 0, nv,
               columns + panels.offset(j, n) + i * nv * w);
    }
  }

  // h_{t-1} of rows row + own, in chunk c.
  void pack_previous_states(int64_t c, int64_t row, Range own, int64_t n) {
    int64_t t = s.chunk_step[c];
    for (int64_t i = own.begin; i < own.end;) {
      while (s.offset[t + 1] <= row + i) t++;
      const int64_t before = step_before(a, t);
      Source<T> source[2];
      const int found = sources<T>(a, static_cast<const T*>(a.y), a.y_stride, true, t, before, source);
      for (int k = 0; k < found; k++) {
        for (int64_t b = row + i - s.offset[t]; i < own.end && b < source[k].rows.end; b++, i++) {
          pack_columns(source[k].h + (b - source[k].rows.begin) * source[k].h_stride, state_panels, i, n, h_columns);
        }
      }
    }
  }

  // Slots first_slot .. first_slot + gates of the group's unit blocks, each block's rows [gate][lane] as tiles.
  void pack_gates(GateBlock<T, kSlots> dgates, Range group, int first_slot, int64_t chunk_row, int64_t n) {
    for (int64_t u = group.begin; u < group.end; u++) {
      pack_tiles<kTileRows>(dgates.at(u, chunk_row) + first_slot * w, GateBlock<T, kSlots>::kRow, Cell::kGates * w, n,
                            block_tiles(u - group.begin, n));
    }
  }

  void add_input(GateBlock<T, kSlots> dgates, Range group, int64_t row, int64_t n) {
    pack_gates(dgates, group, Cell::kXSlot, row, n);
    add_gates(group, Cell::kXSlot, n, x_columns, input_panels, a.grads.w_ih, adds_input);
  }

  void add_gates(Range group, int first_slot, int64_t n, const T* columns, const ColumnPanels<T>& panels, void* matrix,
                 bool add) {
    for (int64_t j = 0; j < panels.count(); j++) {
      for (int64_t u = group.begin; u < group.end; u++) {
        const int64_t valid = valid_lanes<T>(a.hidden_size, u);
        add_outer(block_tiles(u - group.begin, n), Cell::kGates * w, n, columns, panels, j, add, u == group.begin,
                  [&](int64_t i) -> T* {
                    const int64_t gate = Cell::gate_of_slot(first_slot + int(i / w)), lane = i % w;
                    return lane < valid ? row_of(matrix, panels, gate * a.hidden_size + u * w + lane, j) : nullptr;
                  });
      }
    }
  }

  void add_projection(int64_t chunk_row, int64_t n) {
    const int64_t width = state_panels.vectors() * w;
    for (int64_t sb = states.begin; sb < states.end; sb += kMaxVectors) {
      const int64_t rows = min(kMaxVectors, states.end - sb) * w;
      pack_tiles<kTileRows>(static_cast<const T*>(a.dhidden) + chunk_row * width + sb * w, width, rows, n, tiles);
      for (int64_t j = 0; j < unit_panels.count(); j++) {
        add_outer(tiles, rows, n, m_columns, unit_panels, j, adds, true, [&](int64_t i) {
          return sb * w + i < a.state_size ? row_of(a.grads.w_hr, unit_panels, sb * w + i, j) : nullptr;
        });
      }
    }
  }

  // Row i of the product of packed tiles and columns of panel j joins, or becomes, out(i); null: not wanted.
  template <class Out>
  FASTRNN_INLINE void add_outer(const T* packed, int64_t rows, int64_t n, const T* columns,
                                const ColumnPanels<T>& panels, int64_t j, bool add, bool fetch_next, Out&& out) const {
    const int nv = panels.nv(j);
    const T* next = fetch_next && j + 1 < panels.count() ? columns + panels.offset(j + 1, n) : nullptr;
    gemm(Tiles{packed, n}, rows, 1, n, Panel<T>{columns + panels.offset(j, n), nv, next},
         [&](int64_t first, int64_t count, const T* tile) {
           for (int64_t r = 0; r < count; r++) {
             T* row = out(first + r);
             if (row) add_or_put_row(add, tile + r * nv * w, nv, panels.columns(j), row);
             T* later = first + count + r < rows ? out(first + count + r) : nullptr;
             if (later) {
               for (int v = 0; v < nv; v++) __builtin_prefetch(later + v * w, 1);
             }
           }
         });
  }

  static T* row_of(void* matrix, const ColumnPanels<T>& panels, int64_t row, int64_t j) {
    return static_cast<T*>(matrix) + row * panels.n + panels.first_column(j);
  }

  T* block_tiles(int64_t i, int64_t n) const { return tiles + i * Tiles::size(Cell::kGates * w, n); }

  const BackwardArgs& a;
  const Steps& s;
  Team& team;
  const int tid;
  const int64_t blocks;       // of w units
  const Range units, states;  // this thread's blocks of units and of h
  const ColumnPanels<T> input_panels, state_panels, unit_panels;
  T *const x_columns, *const h_columns, *const m_columns;
  T* const tiles;
  bool adds, adds_input;  // to the gradients that are there; to W_ih's
};

}  // namespace FASTRNN_ISA
}  // namespace fastrnn
