// The output layer: memory of a pass and its team of threads.
#include <algorithm>
#include <type_traits>
#include <vector>

#include "cpu/memory.h"
#include "cpu/plan.h"
#include "cpu/threads.h"
#include "cpu/workspace.h"

namespace fastrnn {

namespace {

constexpr int64_t kLeastRows = 64;  // fewer than that would read the weights too often
constexpr int64_t kMostRows = 1024;
// Threads of a loss split the rows where there are that many for each symbol and thread: what each then has of its own,
// gradients of all weights, is small beside the parts of dx that they would exchange otherwise.
constexpr int64_t kRowsPerSymbol = 4;
constexpr int64_t kCachedRows = 256;  // of x and dx: they should stay in a thread's second-level cache

size_t element_of(Dtype dtype) { return dtype == Dtype::float32 ? sizeof(float) : sizeof(double); }

// What the passes share: the problem, its threads, and the memory of a call.
template <class Args>
class Pass {
 public:
  Pass(Dtype dtype, int64_t symbols, int64_t input_size, const void* weight, const void* bias)
      : kernels(kernels_in_use(dtype)),
        element(element_of(dtype)),
        vectors((symbols + kernels.width - 1) / kernels.width) {
    args.symbols = symbols;
    args.input_size = input_size;
    args.weight = weight;
    args.bias = bias;
  }

  // Threads worth using for so many rows, of which each takes some of the parts.
  int threads_for(int64_t rows, int64_t parts, int max_threads) const {
    return threads_worth(2.0 * double(rows) * double(args.symbols) * double(args.input_size), parts, max_threads);
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

  size_t bytes() const { return layout.size(); }
  void place(void* memory) const {
    for (const Part& part : parts) *part.data = at(memory, part.offset);
  }

  void run(void (*kernel)(const Args&, Team&, int tid), const std::shared_ptr<Memory>& memory) {
    if (memory) memory->note(bytes());
    const Buffer buffer = acquire(bytes(), memory);
    place(buffer.data());
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
      : pass(pass), threads(pass.threads_for(rows, pass.vectors, max_threads)), memory(memory) {
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

class CrossEntropyPass : public Pass<CrossEntropyArgs> {
 public:
  explicit CrossEntropyPass(const CrossEntropy& problem)
      : Pass(problem.dtype, problem.symbols, problem.input_size, problem.weight, problem.bias) {
    args.scale = problem.scale;
    args.targets = problem.targets;
    args.nats = problem.nats;
    args.dx = problem.dx;
    args.dweight = problem.dweight;
    args.dbias = problem.dbias;
    args.accumulate = problem.accumulate;
  }

  void begin(const CrossEntropy& problem, int64_t most_rows, int on_threads) {
    const bool gradients = problem.dx || problem.dweight || problem.dbias;
    const int64_t logits = vectors * kernels.width;  // of a row
    const int64_t input = (problem.input_size + kernels.width - 1) / kernels.width * kernels.width;
    if (gradients) {
      most_rows = std::clamp(int64_t(problem.logit_bytes / (size_t(logits) * element)), kLeastRows, most_rows);
    }
    Pass::begin(problem.x, problem.rows, most_rows, on_threads);
    add(args.panels, threads * kernels.panels_size(problem.input_size));
    add(args.target_logits, args.chunk_rows);
    add(args.tops, args.chunk_rows);
    add(args.factors, args.chunk_rows);
    if (gradients) {
      add(args.logits, args.chunk_rows * logits);
      add(args.dlogits, threads * kernels.dlogits_size(args.chunk_rows));
    }
    if (problem.dweight) add(args.x_panels, args.chunk_rows * input);
    if (problem.dx && threads > 1) add(args.dx_parts, threads * args.chunk_rows * input);
  }
};

// What stands so far into an array; null if there is none.
template <class Void>
Void* from_byte(Void* array, int64_t offset) {
  using Char = std::conditional_t<std::is_const_v<Void>, const char, char>;
  return array ? static_cast<Char*>(array) + offset : nullptr;
}

void add_numbers(Dtype dtype, void* to, const void* from, int64_t begin, int64_t end) {
  const auto add = [&](auto* sum, const auto* term) {
    for (int64_t i = begin; i < end; i++) sum[i] += term[i];
  };
  if (dtype == Dtype::float32) {
    add(static_cast<float*>(to), static_cast<const float*>(from));
  } else {
    add(static_cast<double*>(to), static_cast<const double*>(from));
  }
}

// Each thread has a pass of its own over some of the rows. The first adds to the caller's gradients of the weights, the
// others to their own, which are added to those in the end.
void run_by_rows(const CrossEntropy& problem, int threads, const std::shared_ptr<Memory>& memory) {
  const int64_t weights = problem.symbols * problem.input_size;
  std::vector<CrossEntropyPass> passes;
  passes.reserve(size_t(threads));  // what they `add` points into them
  std::vector<size_t> offsets;
  Layout layout;
  for (int i = 0; i < threads; i++) {
    CrossEntropy own = problem;
    const int64_t row = share_begin(problem.rows, i, threads);
    const int64_t element = int64_t(element_of(problem.dtype));
    own.rows = share_begin(problem.rows, i + 1, threads) - row;
    own.x = from_byte(problem.x, row * problem.input_size * element);
    own.targets += row;
    own.nats = from_byte(problem.nats, row * element);
    own.dx = from_byte(problem.dx, row * problem.input_size * element);
    own.logit_bytes /= size_t(threads);
    own.accumulate = i == 0 && problem.accumulate;
    passes.emplace_back(own);
    CrossEntropyPass& pass = passes.back();
    pass.begin(own, kCachedRows, 1);
    if (i > 0 && problem.dweight) pass.add(pass.args.dweight, weights);
    if (i > 0 && problem.dbias) pass.add(pass.args.dbias, problem.symbols);
    offsets.push_back(layout.add(pass.bytes()));
  }
  if (memory) memory->note(layout.size());
  const Buffer buffer = acquire(layout.size(), memory);
  for (size_t i = 0; i < passes.size(); i++) passes[i].place(at(buffer.data(), offsets[i]));
  on_team(threads, [&](Team& team, int tid) {
    const CrossEntropyPass& own = passes[size_t(tid)];
    on_team(1, [&](Team& alone, int) { own.kernels.cross_entropy(own.args, alone, 0); });
    team.barrier(tid);
    const auto sum = [&](void* total, void* CrossEntropyArgs::* part, int64_t n) {
      for (size_t i = 1; total && i < passes.size(); i++) {
        add_numbers(problem.dtype, total, passes[i].args.*part, share_begin(n, tid, threads),
                    share_begin(n, tid + 1, threads));
      }
    };
    sum(problem.dweight, &CrossEntropyArgs::dweight, weights);
    sum(problem.dbias, &CrossEntropyArgs::dbias, problem.symbols);
  });
}

}  // namespace

void cross_entropy(const CrossEntropy& problem, int max_threads, const std::shared_ptr<Memory>& memory) {
  CrossEntropyPass pass(problem);
  if (problem.rows == 0) {
    const auto clear = [&](void* gradient, int64_t n) {
      if (gradient && !problem.accumulate) std::memset(gradient, 0, size_t(n) * pass.element);
    };
    clear(problem.dweight, problem.symbols * problem.input_size);
    return clear(problem.dbias, problem.symbols);
  }
  const int by_rows = pass.threads_for(problem.rows, problem.rows / kLeastRows, max_threads);
  if (by_rows > 1 && problem.rows >= kRowsPerSymbol * problem.symbols * by_rows) {
    return run_by_rows(problem, by_rows, memory);
  }
  pass.begin(problem, kMostRows, pass.threads_for(problem.rows, pass.vectors, max_threads));
  pass.run(pass.kernels.cross_entropy, memory);
}

std::unique_ptr<TopSymbols> make_top_symbols(Dtype dtype, int64_t symbols, int64_t input_size, const void* weight,
                                             const void* bias, int64_t rows, int max_threads,
                                             const std::shared_ptr<Memory>& memory) {
  return std::make_unique<PackedTopSymbols>(Pass<TopSymbolsArgs>(dtype, symbols, input_size, weight, bias), rows,
                                            max_threads, memory);
}

}  // namespace fastrnn
