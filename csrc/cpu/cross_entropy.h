// The output layer of a model over symbols: logits, the cross-entropy of each row's target, and all gradients.
//
// Threads split the symbols; where these are few, each has a pass of its own over some rows (output.cpp). Logits are
// stored once, [panel][row][columns]. Once the softmax of a row is known, a few panels of logits at a time become
// gradients in a buffer that stays in the second-level cache, from which both products take them: the thread's own
// share of dx = dlogits weight (dx itself where there is one thread) and, packed as tiles, dweight = dlogits^T x.
#pragma once

#include "cpu/logits.h"

namespace fastrnn {
namespace FASTRNN_ISA {

template <class T>
class CrossEntropyPass {
  static constexpr int w = kWidth<T>;
  using Math = SimdMath<T>;

 public:
  CrossEntropyPass(const CrossEntropyArgs& args, Team& team, int tid)
      : a(args),
        team(team),
        tid(tid),
        panel(static_cast<T*>(a.panels) + tid * panels_size(a.input_size)),
        logits(args, team, tid, panel),
        panels(logits.panels),
        input_panels{a.input_size, kPanelVectors},
        kept(static_cast<T*>(a.logits) + logits.first_own * a.chunk_rows),
        dlogits(static_cast<T*>(a.dlogits) + tid * dlogits_size(a.chunk_rows)),
        tiles(dlogits + gradients_size(a.chunk_rows)) {}

  void run() {
    const bool gradients = a.dx || a.dweight || a.dbias;
    for (int64_t row = 0; row < a.rows; row += a.chunk_rows) {
      const int64_t n = min(a.chunk_rows, a.rows - row);
      make_logits(row, n, gradients);
      if (a.dweight) pack_x(row, n);
      team.barrier(tid);
      finish_rows(row, n);
      team.barrier(tid);
      if (!gradients) continue;
      add_gradients(row, n);
      team.barrier(tid);
      if (a.dx && team.size() > 1) sum_dx(row, n);
    }
  }

  // Elements of the parts of CrossEntropyArgs that every thread has one of.
  static int64_t panels_size(int64_t input_size) { return kBlockPanels * kColumns * padded(input_size); }
  static int64_t dlogits_size(int64_t rows) {
    return gradients_size(rows) + kBlockPanels * Tiles::size(kColumns, rows);
  }
  static int64_t padded(int64_t n) { return (n + w - 1) / w * w; }

 private:
  static constexpr int64_t kColumns = Logits<T>::kColumns;
  static constexpr int kTileRows = best_rows(kPanelVectors, kColumns, w);
  using Tiles = PackedRows<T, kTileRows>;
  // Gradients of a few hundred rows fit the second-level cache, and a block's part of dx is a single chain of sums.
  static constexpr int64_t kBlockPanels = kChain / kColumns;
  static constexpr int64_t kDxRows = 128;

  static int64_t gradients_size(int64_t rows) { return kBlockPanels * kColumns * rows; }

  T* kept_of(int64_t p, int64_t n) const { return kept + panels.offset(p, n); }

  void make_logits(int64_t row, int64_t n, bool keep) {
    logits.visit(row, n, [&](int64_t p, int64_t r, const Vec<T>* logit, Vec<T> /*largest*/) {
      const int nv = panels.nv(p);
      if (keep) {
        for (int v = 0; v < nv; v++) store(kept_of(p, n) + (r * nv + v) * w, logit[v]);
      }
      const int64_t target = a.targets[row + r] - logits.first_symbol(p);
      if (target >= 0 && target < panels.columns(p)) {
        static_cast<T*>(a.target_logits)[r] = logit[target / w][int(target % w)];
      }
    });
  }

  // What is ignored must not meet a gradient of 0 as NaN.
  void pack_x(int64_t row, int64_t n) {
    const Range rows = share(n, team, tid);
    for (int64_t r = rows.begin; r < rows.end; r++) {
      const T* source = static_cast<const T*>(a.x) + (row + r) * a.input_size;
      for (int64_t j = 0; j < input_panels.count(); j++) {
        const int nv = input_panels.nv(j);
        T* packed = static_cast<T*>(a.x_panels) + input_panels.offset(j, n) + r * nv * w;
        if (a.targets[row + r] >= 0) {
          pack_row(source + input_panels.first_column(j), input_panels.columns(j), nv, packed);
        } else {
          for (int v = 0; v < nv; v++) store(packed + v * w, Vec<T>{});
        }
      }
    }
  }

  // Each row's loss, and what turns its logits into gradients.
  void finish_rows(int64_t row, int64_t n) {
    const Range rows = share(n, team, tid);
    for (int64_t r = rows.begin; r < rows.end; r++) {
      const auto softmax = logits.softmax(r);
      const bool counts = a.targets[row + r] >= 0;
      static_cast<T*>(a.tops)[r] = softmax.top;
      static_cast<T*>(a.factors)[r] = counts ? T(a.scale / softmax.sum) : T(0);
      static_cast<T*>(a.nats)[row + r] = counts ? T(softmax.nats(static_cast<T*>(a.target_logits)[r])) : T(0);
    }
  }

  void add_gradients(int64_t row, int64_t n) {
    const bool adds = a.accumulate || row > 0;
    for (int64_t p = 0; p < panels.count();) {
      // Panels of as many symbols each.
      int64_t count = 1;
      while (count < kBlockPanels && p + count < panels.count() && panels.columns(p + count) == panels.columns(p))
        count++;
      for (int64_t i = 0; i < count; i++) make_gradients(p + i, row, n, adds, dlogits + i * kColumns * n);
      if (a.dx) add_dx(p, count, row, n);
      if (a.dweight) add_dweight(p, count, n, adds);
      p += count;
    }
  }

  void make_gradients(int64_t p, int64_t row, int64_t n, bool adds, T* out) {
    const int nv = panels.nv(p);
    const int64_t first = logits.first_symbol(p), count = panels.columns(p);
    const T* logit = kept_of(p, n);
    Vec<T> sums[kMaxVectors] = {};
    for (int64_t r = 0; r < n; r++, logit += nv * w, out += nv * w) {
      const Vec<T> top = Math::set1(static_cast<T*>(a.tops)[r]), factor = Math::set1(static_cast<T*>(a.factors)[r]);
      const int64_t target = a.targets[row + r];
      for (int v = 0; v < nv; v++) {
        const Vec<T> d = target < 0 ? Vec<T>{} : Math::exp(load(logit + v * w) - top) * factor;
        store(out + v * w, d);
      }
      if (target >= first && target < first + count) out[target - first] -= T(a.scale);
      for (int v = 0; v < nv; v++) sums[v] += load(out + v * w);
    }
    if (!a.dbias) return;
    T total[kColumns];
    for (int v = 0; v < nv; v++) store(total + v * w, sums[v]);
    add_or_put_row(adds, total, nv, count, static_cast<T*>(a.dbias) + first);
  }

  // To this thread's share, or, without others, to dx itself. Some rows at a time, whose gradients stay in the
  // second-level cache while all panels pass.
  void add_dx(int64_t p, int64_t count, int64_t row, int64_t n) {
    const bool add = p > 0;
    const int64_t per_panel = panels.columns(p), k_size = count * per_panel;
    for (int64_t k = 0; k < k_size; k++) {
      const T* weights = logits.weight_row(logits.first_symbol(p) + k);
      for (int64_t j = 0; j < input_panels.count(); j++) {
        const int nv = input_panels.nv(j);
        pack_row(weights + input_panels.first_column(j), input_panels.columns(j), nv, dx_panel(j, k_size) + k * nv * w);
      }
    }
    const EvenParts parts(n, kDxRows);
    int64_t first = 0;
    for (int64_t i = 0; i < parts.count; first += parts.size(i), i++) {
      const Rows<T> rows{dlogits + first * panels.nv(p) * w, panels.nv(p) * w, kColumns * n};
      for (int64_t j = 0; j < input_panels.count(); j++) {
        const int nv = input_panels.nv(j);
        const T* next = j + 1 < input_panels.count() ? dx_panel(j + 1, k_size) : nullptr;
        gemm(rows, parts.size(i), count, per_panel, Panel<T>{dx_panel(j, k_size), nv, next},
             [&](int64_t begin, int64_t tile_rows, const T* tile) {
               if (team.size() == 1) {
                 T* to = static_cast<T*>(a.dx) + (row + first + begin) * a.input_size + input_panels.first_column(j);
                 for (int64_t r = 0; r < tile_rows; r++, tile += nv * w, to += a.input_size) {
                   add_or_put_row(add, tile, nv, input_panels.columns(j), to);
                 }
                 return;
               }
               T* part = dx_part(tid, j, n) + (first + begin) * nv * w;
               for (int64_t k = 0; k < tile_rows * nv * w; k += w) {
                 store(part + k, add ? load(part + k) + load(tile + k) : load(tile + k));
               }
             });
      }
    }
  }
  T* dx_panel(int64_t j, int64_t k_size) const { return panel + input_panels.offset(j, k_size); }

  void add_dweight(int64_t p, int64_t count, int64_t n, bool adds) {
    const T* x_panels = static_cast<const T*>(a.x_panels);
    for (int64_t i = 0; i < count; i++) {
      pack_tiles<kTileRows>(dlogits + i * kColumns * n, panels.nv(p) * w, panels.columns(p), n, block_tiles(i, n));
    }
    for (int64_t j = 0; j < input_panels.count(); j++) {
      const int nv = input_panels.nv(j);
      for (int64_t i = 0; i < count; i++) {
        T* to = static_cast<T*>(a.dweight) + logits.first_symbol(p + i) * a.input_size + input_panels.first_column(j);
        const T* next =
            i + 1 == count && j + 1 < input_panels.count() ? x_panels + input_panels.offset(j + 1, n) : nullptr;
        gemm(Tiles{block_tiles(i, n), n}, panels.columns(p), 1, n,
             Panel<T>{x_panels + input_panels.offset(j, n), nv, next},
             [&](int64_t begin, int64_t tile_rows, const T* tile) {
               for (int64_t r = 0; r < tile_rows; r++, tile += nv * w) {
                 add_or_put_row(adds, tile, nv, input_panels.columns(j), to + (begin + r) * a.input_size);
               }
             });
      }
    }
  }

  T* block_tiles(int64_t i, int64_t n) const { return tiles + i * Tiles::size(kColumns, n); }
  // Panel j of a thread's share of dx, [row][columns].
  T* dx_part(int thread, int64_t j, int64_t n) const {
    return static_cast<T*>(a.dx_parts) + thread * a.chunk_rows * padded(a.input_size) + input_panels.offset(j, n);
  }

  void sum_dx(int64_t row, int64_t n) {
    const Range rows = share(n, team, tid);
    for (int64_t j = 0; j < input_panels.count(); j++) {
      const int nv = input_panels.nv(j);
      for (int64_t r = rows.begin; r < rows.end; r++) {
        Vec<T> sums[kMaxVectors] = {};
        for (int t = 0; t < team.size(); t++) {
          for (int v = 0; v < nv; v++) sums[v] += load(dx_part(t, j, n) + (r * nv + v) * w);
        }
        T total[kColumns];
        for (int v = 0; v < nv; v++) store(total + v * w, sums[v]);
        put_row(total, nv, input_panels.columns(j),
                static_cast<T*>(a.dx) + (row + r) * a.input_size + input_panels.first_column(j));
      }
    }
  }

  const CrossEntropyArgs& a;
  Team& team;
  const int tid;
  T* const panel;  // packed weights
  Logits<T> logits;
  const ColumnPanels<T>& panels;
  const ColumnPanels<T> input_panels;
  T* const kept;     // logits
  T* const dlogits;  // [panel of the block][row][columns]
  T* const tiles;    // the same, transposed
};

template <class T>
void cross_entropy(const CrossEntropyArgs& args, Team& team, int tid) {
  CrossEntropyPass<T>(args, team, tid).run();
}

}  // namespace FASTRNN_ISA
}  // namespace fastrnn
