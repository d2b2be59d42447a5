// Products of matrices: memory of a call and its team of threads.
#include <algorithm>

#include "cpu/memory.h"
#include "cpu/plan.h"
#include "cpu/threads.h"
#include "cpu/workspace.h"

namespace fastrnn {

void product(const Product& problem, int max_threads) {
  const Kernels& kernels = kernels_in_use(problem.dtype);
  const size_t element = problem.dtype == Dtype::float32 ? 4 : 8;
  if (problem.k_size == 0 && !problem.add) {
    for (int64_t r = 0; r < problem.rows; r++) {
      std::memset(at(problem.out, size_t(r * problem.out_stride) * element), 0, size_t(problem.columns) * element);
    }
  }
  if (problem.rows == 0 || problem.columns == 0 || problem.k_size == 0) return;
  const int64_t vectors = (problem.columns + kernels.width - 1) / kernels.width;
  const int64_t panels = (vectors + kernels.panel_vectors - 1) / kernels.panel_vectors;
  const double flops = 2.0 * double(problem.rows) * double(problem.columns) * double(problem.k_size);
  const bool split_rows = problem.a_transposed || (panels < max_threads && problem.rows >= kPackedRows);
  const int threads = threads_worth(flops, split_rows ? problem.rows : panels, max_threads);

  ProductArgs args{};
  static_cast<Product&>(args) = problem;
  args.split_rows = split_rows;
  const int64_t piece = std::min(problem.k_size, kProductPiece);
  const int64_t packed = split_rows ? vectors : int64_t(threads) * kernels.panel_vectors;
  Layout layout;
  const size_t panels_at = layout.add(size_t(packed * kernels.width * piece) * element);
  size_t tiles_at = 0;
  if (problem.a_transposed) {
    const int64_t rows = (problem.rows + threads - 1) / threads;
    tiles_at = layout.add(size_t(threads * kernels.product_tiles_size(rows, piece)) * element);
  }
  const Buffer buffer = acquire(layout.size(), nullptr);
  args.panels = at(buffer.data(), panels_at);
  args.tiles = at(buffer.data(), tiles_at);
  on_team(threads, [&](Team& team, int tid) { kernels.product(args, team, tid); });
}

}  // namespace fastrnn
