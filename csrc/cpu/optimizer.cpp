// Steps of optimizers and sums over gradients: one team of threads for all arrays.
#include <algorithm>
#include <vector>

#include "cpu/plan.h"
#include "cpu/threads.h"

namespace fastrnn {

namespace {

constexpr int64_t kNumbersPerThread = 1 << 15;  // fewer take less time than another thread to wake
constexpr int64_t kBlock = 1 << 14;             // summed apart, so that the sum does not depend on the threads

int threads_for(const std::vector<OptimizerArrays>& arrays, int most) {
  int64_t n = 0;
  for (const OptimizerArrays& each : arrays) n += each.n;
  return int(std::clamp<int64_t>(n / kNumbersPerThread, 1, most));
}

}  // namespace

void optimize(Dtype dtype, const OptimizerStep& step, const std::vector<OptimizerArrays>& arrays, int max_threads) {
  const Kernels& kernels = kernels_in_use(dtype);
  OptimizerArgs args{};
  static_cast<OptimizerStep&>(args) = step;
  args.arrays = arrays.data();
  args.count = int64_t(arrays.size());
  on_team(threads_for(arrays, max_threads), [&](Team& team, int tid) { kernels.optimize(args, team, tid); });
}

double sum_of_squares(Dtype dtype, const std::vector<OptimizerArrays>& arrays, double divisor, int max_threads) {
  struct Block {
    const void* data;
    int64_t n;
  };
  const Kernels& kernels = kernels_in_use(dtype);
  const size_t element = dtype == Dtype::float32 ? 4 : 8;
  std::vector<Block> blocks;
  for (const OptimizerArrays& each : arrays) {
    for (int64_t i = 0; i < each.n; i += kBlock) {
      blocks.push_back({static_cast<const char*>(each.g) + size_t(i) * element, std::min(kBlock, each.n - i)});
    }
  }
  std::vector<double> sums(blocks.size());
  on_team(threads_for(arrays, max_threads), [&](Team& team, int tid) {
    const int64_t n = int64_t(blocks.size());
    for (int64_t i = share_begin(n, tid, team.size()); i < share_begin(n, tid + 1, team.size()); i++) {
      sums[size_t(i)] = kernels.sum_of_squares(blocks[size_t(i)].data, blocks[size_t(i)].n, divisor);
    }
  });
  double sum = 0;
  for (const double each : sums) sum += each;
  return sum;
}

}  // namespace fastrnn
