#include <stdexcept>

#include "cuda/fastrnn_cuda.h"
#include "cuda/general.h"
#include "cuda/numbers.h"

namespace fastrnn {
namespace cuda {
namespace {

// Calls run(N{}) for the numbers of a call.
template <class Run>
auto with_numbers(Dtype dtype, bool tf32, Run&& run) {
  switch (dtype) {
    case Dtype::float64:
      return run(Float64{});
    case Dtype::float16:
      return run(Float16{});
    case Dtype::bfloat16:
      return run(Bfloat16{});
    default:
      return tf32 ? run(Tf32{}) : run(Float32{});
  }
}

void check(const Call& call) {
  if (call.batch.packed) throw std::invalid_argument("fastrnn: rows on GPUs are never packed");
}

}  // namespace

Sizes sizes(const Problem& problem, const Batch& batch, bool dropout, bool training) {
  const Extents e(problem, batch);
  return with_numbers(problem.dtype, false, [&](auto n) -> Sizes {
    using N = decltype(n);
    const size_t forward = ForwardWorkspace<N>(problem, e, dropout, training, nullptr).arena.size();
    if (!training) return {0, forward, 0};
    return {Reserve<N>(problem, e, nullptr).arena.size(), forward,
            BackwardWorkspace<N>(problem, e, dropout, nullptr).arena.size()};
  });
}

std::vector<ReservePart> reserve_parts(const Problem& problem) {
  return with_numbers(problem.dtype, false, [&](auto n) {
    const auto parts = [&](int64_t seq_len) {
      Batch batch;
      batch.seq_len = seq_len;
      batch.batch = 1;
      return Reserve<decltype(n)>(problem, Extents(problem, batch), nullptr).arena.parts();
    };
    const std::vector<size_t> one = parts(1), two = parts(2);
    std::vector<ReservePart> all;
    for (size_t i = 0; i < one.size(); i++) all.push_back({two[i] - one[i], 2 * one[i] - two[i]});
    return all;
  });
}

void forward(const Call& call, const std::vector<Weights>& weights, const ForwardArrays& arrays) {
  check(call);
  with_numbers(call.problem.dtype, call.tf32, [&](auto n) { forward_general<decltype(n)>(call, weights, arrays); });
}

void backward(const Call& call, const std::vector<Weights>& weights, const BackwardArrays& arrays,
              const std::vector<WeightGrads>& grads) {
  with_numbers(call.problem.dtype, call.tf32,
               [&](auto n) { backward_general<decltype(n)>(call, weights, arrays, grads); });
}

}  // namespace cuda
}  // namespace fastrnn
