// The output layer: memory of a pass and its team of threads.
#include <algorithm>

#include "cpu/memory.h"
#include "cpu/plan.h"
#include "cpu/threads.h"
#include "cpu/workspace.h"

namespace fastrnn {

namespace {

constexpr int64_t kLeastRows = 64;  // fewer than that would read the weights too often
constexpr int64_t kMostRows = 1024;

// What the passes share: the problem, its threads, and the memory of a call.
template <class Args>
class Pass {
 public:
  Pass(Dtype dtype, int64_t symbols, int64_t input_size, const void* weight, const void* bias)
      : kernels(kernels_in_use(dtype)),
        element(dtype == Dtype::float32 ? 4 : 8),
        vectors((symbols + kernels.width - 1) / kernels.width) {
    args.symbols = symbols;
    args.input_size = input_size;
    args.weight = weight;
    args.bias = bias;
  }

  // Threads worth using for so many rows.
  int threads_for(int64_t rows, int max_threads) const {
    return threads_worth(2.0 * double(rows) * double(args.symbols) * double(args.input_size), vectors, max_threads);
  }

  // Begins a call for these rows, of which at most `most` are taken at a time.
  void begin(const void* x, int64_t rows, int64_t most, int on_threads) {
    threads = on_threads;
    args.x = x;
    args.rows = rows;
    args.few_rows = rows < kPackedRows;
    const int64_t chunks = (rows + most - 1) / most;
    args.chunk_rows = (rows + chunks - 1) / chunks;
    layout = Layout();
    parts.clear();
    add(args.running, threads * args.chunk_rows * 2 * kernels.width);
  }

  // Scratch of so many numbers, there when the kernel runs.
  void add(void*& data, int64_t numbers) { parts.push_back({&data, layout.add(size_t(numbers) * element)}); }

  void run(void (*kernel)(const Args&, Team&, int tid), const std::shared_ptr<Memory>& memory) {
    if (memory) memory->note(layout.size());
    const Buffer buffer = acquire(layout.size(), memory);
    for (const Part& part : parts) *part.data = at(buffer.data(), part.offset);
    on_team(threads, [&](Team& team, int tid) { kernel(args, team, tid); });
  }

  const Kernels& kernels;
  const size_t element;
  const int64_t vectors;  // of symbols
  int threads = 1;
  Args args{};

 private:
  struct Part {
    void** data;
    size_t offset;
  };
  Layout layout;
  std::vector<Part> parts;
};

class PackedTopSymbols final : public TopSymbols {
 public:
  PackedTopSymbols(const Pass<TopSymbolsArgs>& pass, int64_t rows, int max_threads,
                   const std::shared_ptr<Memory>& memory)
      : pass(pass), threads(pass.threads_for(rows, max_threads)), memory(memory) {
    if (rows < kPackedRows) return;
    packed = acquire(size_t(pass.vectors * pass.kernels.width * pass.args.input_size) * pass.element, memory);
    on_team(threads, [&](Team& team, int tid) { pass.kernels.pack_symbols(pass.args, packed.data(), team, tid); });
    this->pass.args.packed = packed.data();
  }

  void find(const void* x, int64_t rows, int64_t count, const uint8_t* never, int32_t* ids,
            double* log_p) const override {
    if (rows == 0) return;
    Pass<TopSymbolsArgs> call = pass;
    TopSymbolsArgs& args = call.args;
    args.count = count;
    args.never = never;
    args.ids = ids;
    args.log_p = log_p;
    call.begin(x, rows, kMostRows, threads);
    if (!args.packed && !args.few_rows) {
      call.add(args.panels, threads * call.kernels.panel_vectors * call.kernels.width * args.input_size);
    }
    const int64_t listed = threads * args.chunk_rows * count;
    call.add(args.best, listed);
    call.add(args.best_ids, listed);  // in half the room, where numbers have 8 bytes
    call.run(call.kernels.top_symbols, memory);
  }

 private:
  Pass<TopSymbolsArgs> pass;
  const int threads;  // each has its panels
  const std::shared_ptr<Memory> memory;
  Buffer packed;
};

}  // namespace

void cross_entropy(const CrossEntropy& problem, int max_threads, const std::shared_ptr<Memory>& memory) {
  Pass<CrossEntropyArgs> pass(problem.dtype, problem.symbols, problem.input_size, problem.weight, problem.bias);
  if (problem.rows == 0) {
    const auto clear = [&](void* gradient, int64_t n) {
      if (gradient && !problem.accumulate) std::memset(gradient, 0, size_t(n) * pass.element);
    };
    clear(problem.dweight, problem.symbols * problem.input_size);
    return clear(problem.dbias, problem.symbols);
  }
  CrossEntropyArgs& args = pass.args;
  args.scale = problem.scale;
  args.targets = problem.targets;
  args.nats = problem.nats;
  args.dx = problem.dx;
  args.dweight = problem.dweight;
  args.dbias = problem.dbias;
  args.accumulate = problem.accumulate;

  const bool gradients = problem.dx || problem.dweight || problem.dbias;
  const int64_t logits = pass.vectors * pass.kernels.width;  // of a row
  const int64_t input = (problem.input_size + pass.kernels.width - 1) / pass.kernels.width * pass.kernels.width;
  int64_t most = kMostRows;
  if (gradients) {
    most = std::clamp(int64_t(problem.logit_bytes / (size_t(logits) * pass.element)), kLeastRows, kMostRows);
  }
  pass.begin(problem.x, problem.rows, most, pass.threads_for(problem.rows, max_threads));
  pass.add(args.panels, pass.threads * pass.kernels.panels_size(problem.input_size));
  pass.add(args.target_logits, args.chunk_rows);
  pass.add(args.tops, args.chunk_rows);
  pass.add(args.factors, args.chunk_rows);
  if (gradients) {
    pass.add(args.logits, args.chunk_rows * logits);
    pass.add(args.dlogits, pass.threads * pass.kernels.dlogits_size(args.chunk_rows));
  }
  if (problem.dweight) pass.add(args.x_panels, args.chunk_rows * input);
  if (problem.dx) pass.add(args.dx_parts, pass.threads * args.chunk_rows * input);
  pass.run(pass.kernels.cross_entropy, memory);
}

std::unique_ptr<TopSymbols> make_top_symbols(Dtype dtype, int64_t symbols, int64_t input_size, const void* weight,
                                             const void* bias, int64_t rows, int max_threads,
                                             const std::shared_ptr<Memory>& memory) {
  return std::make_unique<PackedTopSymbols>(Pass<TopSymbolsArgs>(dtype, symbols, input_size, weight, bias), rows,
                                            max_threads, memory);
}

}  // namespace fastrnn
