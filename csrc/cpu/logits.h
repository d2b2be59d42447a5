// Logits of rows over all symbols, a panel of columns at a time. Their largest and the sum of their exponentials run
// along, lane by lane, so that what needs the softmax of a row need not keep its logits.
//
// Threads split the symbols; each packs its own panels of weights, unless that was done before, or, for few rows, reads
// the weights as they stand.
#pragma once

#include "cpu/layer.h"

namespace fastrnn {
namespace FASTRNN_ISA {

template <class T>
class Logits {
  static constexpr int w = kWidth<T>;
  using Math = SimdMath<T>;
  static constexpr T kLowest = sizeof(T) == 4 ? T(-3.4028234663852886e38) : T(-1.7976931348623157e308);

 public:
  static constexpr int64_t kColumns = kMaxVectors * w;  // of a panel at most

  // panel: room for one, if there are no packed ones.
  Logits(const LogitArgs& args, Team& team, int tid, T* panel)
      : a(args),
        team(team),
        tid(tid),
        first_own(share((a.symbols + w - 1) / w, team, tid).begin * w),
        panels{min(share((a.symbols + w - 1) / w, team, tid).end * w, a.symbols) - first_own},
        panel(panel) {}

  int64_t first_symbol(int64_t p) const { return first_own + panels.first_column(p); }
  const T* weight_row(int64_t symbol) const { return static_cast<const T*>(a.weight) + symbol * a.input_size; }

  static FASTRNN_INLINE Vec<T> larger(Vec<T> x, Vec<T> y) { return x > y ? x : y; }

  // use(p, r, logit, largest) for rows r < n, which begin at `row`, and each panel p of this thread's: its vectors of
  // logits, -inf where there is no symbol, and the largest of each lane.
  template <class Use>
  FASTRNN_INLINE void visit(int64_t row, int64_t n, Use&& use) {
    Vec<T>* const seen = running(tid);  // of each row the largest logit and the sum, for each lane
    for (int64_t r = 0; r < n; r++) {
      seen[2 * r] = Math::set1(kLowest);
      seen[2 * r + 1] = Vec<T>{};
    }
    const Rows<T> x{static_cast<const T*>(a.x) + row * a.input_size, a.input_size, 0};
    for (int64_t p = 0; p < panels.count(); p++) {
      const int nv = panels.nv(p);
      const int64_t first = first_symbol(p), count = panels.columns(p);
      T bias[kColumns];
      for (int64_t i = 0; i < nv * w; i++) {
        // A lane without a symbol adds nothing to its row.
        bias[i] = i >= count ? -T(__builtin_inf()) : a.bias ? static_cast<const T*>(a.bias)[first + i] : T(0);
      }
      MatrixRows<T> rows;
      Panel<T> columns{panel, nv, nullptr};
      if (a.packed) {
        columns.data = packed_panel(static_cast<const T*>(a.packed), p);
        columns.next = p + 1 < panels.count() ? packed_panel(static_cast<const T*>(a.packed), p + 1) : nullptr;
      } else if (a.few_rows) {
        rows = panel_rows(p);
        columns.rows = &rows;
      } else {
        pack(p, panel);
      }
      gemm(x, n, 1, a.input_size, columns, [&](int64_t begin, int64_t tile_rows, const T* tile) {
        for (int64_t r = begin; r < begin + tile_rows; r++, tile += nv * w) {
          Vec<T> logit[kMaxVectors], largest = load(tile) + load(bias);
          logit[0] = largest;
          for (int v = 1; v < nv; v++) {
            logit[v] = load(tile + v * w) + load(bias + v * w);
            largest = larger(largest, logit[v]);
          }
          const Vec<T> top = larger(largest, seen[2 * r]);
          Vec<T> sum = seen[2 * r + 1] * Math::exp(seen[2 * r] - top);
          for (int v = 0; v < nv; v++) sum += Math::exp(logit[v] - top);
          seen[2 * r] = top;
          seen[2 * r + 1] = sum;
          use(p, r, static_cast<const Vec<T>*>(logit), largest);
        }
      });
    }
  }

  // All panels of this thread's, as LogitArgs::packed has them.
  void pack_all(T* packed) const {
    for (int64_t p = 0; p < panels.count(); p++) pack(p, packed_panel(packed, p));
  }

  // The softmax of row r of the last visit, for which threads have met: p(symbol) = e^(logit - top) / sum.
  struct Softmax {
    T top;
    double sum;
    // Two logits first: large ones would take the digits of the sum.
    double nats(T logit) const { return __builtin_log(sum) - (double(logit) - double(top)); }
  };
  Softmax softmax(int64_t r) const {
    Vec<T> lanes = Math::set1(kLowest);
    for (int i = 0; i < team.size(); i++) lanes = larger(lanes, running(i)[2 * r]);
    T top = lanes[0];
    for (int i = 1; i < w; i++) top = top > lanes[i] ? top : lanes[i];
    double sum = 0;
    for (int i = 0; i < team.size(); i++) {
      const Vec<T> part = running(i)[2 * r + 1] * Math::exp(running(i)[2 * r] - Math::set1(top));
      for (int lane = 0; lane < w; lane++) sum += double(part[lane]);
    }
    return {top, sum};
  }

 private:
  MatrixRows<T> panel_rows(int64_t p) const {
    return matrix_rows(weight_row(first_symbol(p)), a.input_size, panels.columns(p));
  }
  void pack(int64_t p, T* to) const { pack_transposed(panel_rows(p), a.input_size, panels.nv(p), to); }
  template <class Pointer>
  Pointer packed_panel(Pointer packed, int64_t p) const {
    return packed + first_own * a.input_size + panels.offset(p, a.input_size);
  }
  Vec<T>* running(int thread) const { return static_cast<Vec<T>*>(a.running) + 2 * thread * a.chunk_rows; }

  const LogitArgs& a;
  Team& team;
  const int tid;

 public:
  const int64_t first_own;  // of this thread's symbols
  const ColumnPanels<T> panels;

 private:
  T* const panel;
};

}  // namespace FASTRNN_ISA
}  // namespace fastrnn
