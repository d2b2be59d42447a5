// out = a b, or out += a b, of row-major matrices, either of which may be transposed: the product of the library for
// what is no layer. A BLAS beside it would have threads of its own, which wait on the cores where these work.
//
// Mostly threads split the columns of b, and each packs its own panels, or, for few rows, reads b as it stands. A
// transposed a is packed into tiles, too: threads then split its rows and pack the panels together, as they do where
// there are too few columns. Sums are cut into pieces of at most kProductPiece.
#pragma once

#include "cpu/layer.h"

namespace fastrnn {
namespace FASTRNN_ISA {

template <class T>
class ProductPass {
  static constexpr int w = kWidth<T>;
  static constexpr int kTileRows = best_rows(kMaxVectors, kMaxVectors* w, w);

 public:
  using Tiles = PackedRows<T, kTileRows>;

  ProductPass(const ProductArgs& args, Team& team, int tid)
      : a(args), team(team), tid(tid), panels{a.columns}, rows(share(a.rows, team, tid)) {}

  void run() {
    const EvenParts pieces(a.k_size, kProductPiece);
    for (int64_t i = 0, k = 0; i < pieces.count; k += pieces.size(i), i++) {
      a.split_rows ? by_rows(k, pieces.size(i)) : by_columns(k, pieces.size(i));
    }
  }

 private:
  void by_columns(int64_t k, int64_t n) const {
    T* const panel = static_cast<T*>(a.panels) + tid * kMaxVectors * w * min(a.k_size, kProductPiece);
    const Range own = share(panels.count(), team, tid);
    const Rows<T> from{static_cast<const T*>(a.a) + k, a.a_stride, 0};
    for (int64_t j = own.begin; j < own.end; j++) {
      const int nv = panels.nv(j);
      MatrixRows<T> standing;
      Panel<T> columns{panel, nv, nullptr};
      if (a.rows < kPackedRows && a.b_transposed) {
        standing = b_rows(j, k);
        columns.rows = &standing;
      } else if (a.rows < kPackedRows && panels.columns(j) == nv * w) {
        columns.data = static_cast<const T*>(a.b) + k * a.b_stride + panels.first_column(j);
        columns.k_stride = a.b_stride;
      } else {
        pack_panel(j, k, n, panel);
      }
      multiply(from, {0, a.rows}, k, n, j, columns);
    }
  }

  void by_rows(int64_t k, int64_t n) const {
    const Range own = share(panels.count(), team, tid);
    T* const all = static_cast<T*>(a.panels);
    for (int64_t j = own.begin; j < own.end; j++) pack_panel(j, k, n, all + panels.offset(j, n));
    T* tiles = nullptr;
    if (a.a_transposed) {
      tiles = static_cast<T*>(a.tiles) + tid * Tiles::size(share_of_most(), min(a.k_size, kProductPiece));
      pack_rows(k, n, tiles);
    }
    team.barrier(tid);
    for (int64_t j = 0; j < panels.count(); j++) {
      const Panel<T> columns{all + panels.offset(j, n), panels.nv(j), nullptr};
      if (a.a_transposed) {
        multiply(Tiles{tiles, n}, rows, k, n, j, columns);
      } else {
        multiply(Rows<T>{static_cast<const T*>(a.a) + rows.begin * a.a_stride + k, a.a_stride, 0}, rows, k, n, j,
                 columns);
      }
    }
    team.barrier(tid);
  }
  int64_t share_of_most() const { return (a.rows + team.size() - 1) / team.size(); }

  // Columns j of a transposed b, which are rows of it, from k on.
  MatrixRows<T> b_rows(int64_t j, int64_t k) const {
    return matrix_rows(static_cast<const T*>(a.b) + panels.first_column(j) * a.b_stride + k, a.b_stride,
                       panels.columns(j));
  }

  void pack_panel(int64_t j, int64_t k, int64_t n, T* panel) const {
    const int nv = panels.nv(j);
    if (a.b_transposed) return pack_transposed(b_rows(j, k), n, nv, panel);
    const T* from = static_cast<const T*>(a.b) + k * a.b_stride + panels.first_column(j);
    for (int64_t i = 0; i < n; i++) pack_row(from + i * a.b_stride, panels.columns(j), nv, panel + i * nv * w);
  }

  // This thread's rows of a transposed a.
  void pack_rows(int64_t k, int64_t n, T* tiles) const {
    const EvenParts parts(rows.size(), kTileRows);
    for (int64_t i = 0; i < n; i++) {
      const T* from = static_cast<const T*>(a.a) + (k + i) * a.a_stride + rows.begin;
      if (k + i + 1 < a.k_size && a.a_stride >= w) {
        pack_tile_row<kTileRows>(from, i, n, parts, tiles);
        continue;
      }
      for (int64_t r = 0, part = 0; part < parts.count; r += parts.size(part), part++) {  // nothing to read beyond it
        T* to = tiles + part * Tiles::tile_size(n) + i * parts.size(part);
        for (int64_t lane = 0; lane < parts.size(part); lane++) to[lane] = from[r + lane];
      }
    }
  }

  template <class A>
  FASTRNN_INLINE void multiply(const A& from, Range of, int64_t k, int64_t n, int64_t j,
                               const Panel<T>& columns) const {
    const int nv = columns.nv;
    T* const to = static_cast<T*>(a.out) + of.begin * a.out_stride + panels.first_column(j);
    const bool adds = a.add || k > 0;
    gemm(from, of.size(), 1, n, columns, [&](int64_t first, int64_t count, const T* tile) {
      for (int64_t r = first; r < first + count; r++, tile += nv * w) {
        add_or_put_row(adds, tile, nv, panels.columns(j), to + r * a.out_stride);
      }
    });
  }

  const ProductArgs& a;
  Team& team;
  const int tid;
  const ColumnPanels<T> panels;
  const Range rows;  // this thread's, where they are split
};

// Elements of ProductArgs::tiles for a thread.
template <class T>
int64_t product_tiles_size(int64_t rows, int64_t k_size) {
  return ProductPass<T>::Tiles::size(rows, k_size);
}

template <class T>
void product(const ProductArgs& args, Team& team, int tid) {
  ProductPass<T>(args, team, tid).run();
}

}  // namespace FASTRNN_ISA
}  // namespace fastrnn
