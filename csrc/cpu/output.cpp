// The output layer: memory of a pass and its team of threads.
#include <algorithm>

#include "cpu/memory.h"
#include "cpu/plan.h"
#include "cpu/threads.h"
#include "cpu/workspace.h"

namespace fastrnn {

namespace {

constexpr double kFlopsPerThread = 2e5;
constexpr int64_t kLeastRows = 64;  // fewer than that would read the weights too often
constexpr int64_t kMostRows = 1024;

}  // namespace

void cross_entropy(const CrossEntropy& problem, int max_threads, const std::shared_ptr<Memory>& memory) {
  const Kernels& kernels = kernels_in_use(problem.dtype);
  const size_t element = problem.dtype == Dtype::float32 ? 4 : 8;
  if (problem.rows == 0) {
    const auto clear = [&](void* gradient, int64_t n) {
      if (gradient && !problem.accumulate) std::memset(gradient, 0, size_t(n) * element);
    };
    clear(problem.dweight, problem.symbols * problem.input_size);
    return clear(problem.dbias, problem.symbols);
  }
  const int64_t vectors = (problem.symbols + kernels.width - 1) / kernels.width;
  const int64_t input = (problem.input_size + kernels.width - 1) / kernels.width * kernels.width;
  const double flops = 2.0 * double(problem.rows) * double(problem.symbols) * double(problem.input_size);
  const int threads = int(std::max(1.0, std::min({double(max_threads), double(vectors), flops / kFlopsPerThread})));
  const bool gradients = problem.dx || problem.dweight || problem.dbias;

  int64_t most = kMostRows;
  if (gradients) {
    const int64_t fitting = int64_t(problem.logit_bytes / (size_t(vectors * kernels.width) * element));
    most = std::clamp(fitting, kLeastRows, kMostRows);
  }
  const int64_t chunks = (problem.rows + most - 1) / most, rows = (problem.rows + chunks - 1) / chunks;

  CrossEntropyArgs args{};
  args.rows = problem.rows;
  args.input_size = problem.input_size;
  args.symbols = problem.symbols;
  args.scale = problem.scale;
  args.x = problem.x;
  args.weight = problem.weight;
  args.bias = problem.bias;
  args.targets = problem.targets;
  args.nats = problem.nats;
  args.dx = problem.dx;
  args.dweight = problem.dweight;
  args.dbias = problem.dbias;
  args.accumulate = problem.accumulate;
  args.chunk_rows = rows;

  struct Part {
    void** data;
    size_t offset;
  };
  Layout layout;
  std::vector<Part> parts;
  const auto add = [&](void*& data, bool wanted, int64_t elements) {
    if (wanted) parts.push_back({&data, layout.add(size_t(elements) * element)});
  };
  add(args.logits, gradients, rows * vectors * kernels.width);
  add(args.target_logits, true, rows);
  add(args.tops, true, rows);
  add(args.factors, true, rows);
  add(args.running, true, threads * rows * 2 * kernels.width);
  add(args.panels, true, threads * kernels.panels_size(problem.input_size));
  add(args.dlogits, gradients, threads * kernels.dlogits_size(rows));
  add(args.x_panels, problem.dweight, rows * input);
  add(args.dx_parts, problem.dx, threads * rows * input);
  if (memory) memory->note(layout.size());
  const Buffer buffer = acquire(layout.size(), memory);
  for (const Part& part : parts) *part.data = at(buffer.data(), part.offset);

  struct Context {
    const Kernels& kernels;
    const CrossEntropyArgs& args;
  } context{kernels, args};
  run_team(
      threads,
      [](void* c, Team& team, int tid) {
        static_cast<Context*>(c)->kernels.cross_entropy(static_cast<Context*>(c)->args, team, tid);
      },
      &context);
}

}  // namespace fastrnn
