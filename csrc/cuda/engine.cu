#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "cuda/fastrnn_cuda.h"
#include "cuda/graphs.h"
#include "cuda/numbers.h"
#include "cuda/passes.h"

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

cudaStream_t stream_of(const Call& call) { return static_cast<cudaStream_t>(call.stream); }

// Value of an environment variable that is one of `known`, of which the first is what it is unasked.
std::string setting(const char* name, std::initializer_list<const char*> known) {
  const char* text = std::getenv(name);
  if (!text) return *known.begin();
  std::string all;
  for (const char* value : known) {
    if (std::strcmp(text, value) == 0) return value;
    all += (all.empty() ? "'" : value == *(known.end() - 1) ? " or '" : ", '") + std::string(value) + "'";
  }
  throw std::invalid_argument(std::string(name) + " must be " + all + ", got '" + text + "'");
}

// Whether a call is worth a graph: many launches, and the same ones next time, which dropout's never are.
bool may_repeat(const Call& call, Path path) {
  const bool wanted = setting("FASTRNN_CUDA_GRAPHS", {"on", "off"}) == "on";
  const int64_t launches = call.batch.seq_len * call.problem.num_layers * call.problem.directions;
  return wanted && path == Path::general && launches >= 16 && launches <= 8192 && call.dropout.p == 0 &&
         !is_capturing(stream_of(call));
}

enum class Pass { forward, backward };

Key key_of(Pass pass, const Call& call, const std::vector<Weights>& weights) {
  const Problem& p = call.problem;
  const Batch& b = call.batch;
  Key key;
  key.add(pass, p.cell, p.dtype, p.input_size, p.hidden_size, p.proj_size, p.num_layers, p.directions, p.bias);
  key.add(b.seq_len, b.batch, b.lengths, b.resets, call.tf32, call.reserve, call.workspace);
  key.add(current_device(), blas_state());
  for (const Weights& w : weights) key.add(w.w_ih, w.w_hh, w.b_ih, w.b_hh, w.w_hr);
  return key;
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

Path choose_path(const Problem& problem, const Batch& batch, bool fits) {
  const std::string wanted = setting("FASTRNN_CUDA_PATH", {"auto", "general", "one_sm"});
  if (!fits || wanted == "general") return Path::general;
  if (wanted == "one_sm") return Path::one_sm;
  // A launch loads the weights first, which takes about as long as a few steps; and batches of many slices take turns
  // on the SMs while the general path spreads them. Where these end is not measured yet.
  const int64_t slices = (batch.batch + 7) / 8 * problem.directions;
  return batch.seq_len >= 4 && slices <= 8 * current_limits().processors ? Path::one_sm : Path::general;
}

Paths paths(const Problem& problem, const Batch& batch, bool tf32) {
  return with_numbers(problem.dtype, tf32, [&](auto n) { return paths_of<decltype(n)>(problem, batch); });
}

void forward(const Call& call, const std::vector<Weights>& weights, const ForwardArrays& arrays) {
  with_numbers(call.problem.dtype, call.tf32, [&](auto n) {
    using N = decltype(n);
    const auto enqueue = [&](cudaStream_t stream) {
      Call on = call;
      on.stream = stream;
      run_forward<N>(on, weights, arrays);
    };
    if (!may_repeat(call, paths_of<N>(call.problem, call.batch).forward)) return enqueue(stream_of(call));
    Key key = key_of(Pass::forward, call, weights);
    key.add(arrays.x, arrays.h_0, arrays.c_0, arrays.y, arrays.h_n, arrays.c_n);
    Graphs::instance().run(key, stream_of(call), enqueue);
  });
}

void backward(const Call& call, const std::vector<Weights>& weights, const BackwardArrays& arrays,
              const std::vector<WeightGrads>& grads) {
  with_numbers(call.problem.dtype, call.tf32, [&](auto n) {
    using N = decltype(n);
    const auto enqueue = [&](cudaStream_t stream) {
      Call on = call;
      on.stream = stream;
      run_backward<N>(on, weights, arrays, grads);
    };
    if (!may_repeat(call, paths_of<N>(call.problem, call.batch).backward)) return enqueue(stream_of(call));
    Key key = key_of(Pass::backward, call, weights);
    key.add(arrays.x, arrays.y, arrays.dy, arrays.dh_n, arrays.dc_n, arrays.dx, arrays.dh_0, arrays.dc_0);
    key.add(arrays.accumulate);
    for (const WeightGrads& g : grads) key.add(g.w_ih, g.w_hh, g.b_ih, g.b_hh, g.w_hr);
    Graphs::instance().run(key, stream_of(call), enqueue);
  });
}

int64_t graph_launches() { return Graphs::instance().launches(); }

void release_graphs() { Graphs::instance().release(); }

}  // namespace cuda
}  // namespace fastrnn
