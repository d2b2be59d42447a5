// One layer used from many threads at once: every caller must get the bits that a lone caller gets.
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "check.h"
#include "cpu/isa.h"
#include "cpu/memory.h"
#include "fastrnn.h"

using namespace fastrnn;

namespace {

using Array = std::vector<float>;

Array random_array(int64_t n, unsigned seed, float largest = 1) {
  std::mt19937 random(seed);
  Array values(static_cast<size_t>(n));
  for (float& value : values) value = (static_cast<float>(random() % 2001) / 1000 - 1) * largest;
  return values;
}

// A stack of layers and one batch, read by all threads and written by none.
struct Case {
  Problem problem;
  Batch batch;
  Dropout dropout;
  std::vector<int64_t> lengths;
  std::vector<uint8_t> resets;
  Array x, h_0, c_0, dy;
  std::vector<Array> arrays;  // w_ih, w_hh, b_ih, b_hh and, with a projection, w_hr of each layer and direction
  std::vector<Weights> weights;
  bool need_dx = true;

  Case(CellType cell, int directions, bool ragged, int64_t proj_size, int64_t seq_len = 7) {
    problem.cell = cell;
    problem.input_size = 9;
    problem.hidden_size = 70;
    problem.proj_size = proj_size;
    problem.num_layers = 2;
    problem.directions = directions;
    batch.seq_len = seq_len;
    batch.batch = 5;
    if (ragged) {
      lengths = {seq_len, 0, seq_len / 2, seq_len, 1};
      batch.lengths = lengths.data();
    }
    if (ragged && directions == 1) {
      resets.resize(static_cast<size_t>(seq_len) * 5);
      resets[12] = resets[3] = 1;
      batch.resets = resets.data();
    }
    dropout = {0.3, 42};
    const int64_t T = seq_len, B = 5, D = directions, P = problem.state_size(), H = problem.hidden_size, L = 2;
    x = random_array(T * B * problem.input_size, 1);
    h_0 = random_array(L * D * B * P, 2);
    c_0 = random_array(L * D * B * H, 3);
    dy = random_array(T * B * D * P, 4);
    const int64_t rows = problem.gates() * H;
    for (int64_t i = 0; i < L * D; ++i)
      for (int64_t n : {rows * problem.layer_input_size(i / D), rows * P, rows, rows, problem.proj_size * H})
        // Small enough that gradients do not grow over many steps: NaN would be unequal to itself.
        arrays.push_back(random_array(n, static_cast<unsigned>(5 + arrays.size()), 0.1f));
    for (size_t i = 0; i < arrays.size(); i += 5) {
      const Array* a = &arrays[i];
      weights.push_back({a[0].data(), a[1].data(), a[2].data(), a[3].data(), proj_size ? a[4].data() : nullptr});
    }
  }
};

// What one training step gives.
struct Step {
  Array y, h_n, c_n, dx, dh_0, dc_0;
  std::vector<Array> grads;
  std::unique_ptr<Reserve> reserve;

  void forward(const Case& c, int threads, const std::shared_ptr<Memory>& memory) {
    y.resize(c.dy.size());
    h_n.resize(c.h_0.size());
    c_n.resize(c.c_0.size());
    const bool lstm = c.problem.cell == CellType::lstm;
    const ForwardArrays arrays{c.x.data(), c.h_0.data(), lstm ? c.c_0.data() : nullptr,
                               y.data(),   h_n.data(),   lstm ? c_n.data() : nullptr};
    reserve = fastrnn::forward(c.problem, c.batch, c.weights, arrays, c.dropout, true, threads, memory);
  }

  void backward(const Case& c, const Step& kept, int threads, const std::shared_ptr<Memory>& memory) {
    dx.resize(c.x.size());
    dh_0.resize(c.h_0.size());
    dc_0.resize(c.c_0.size());
    const bool lstm = c.problem.cell == CellType::lstm;
    for (const Array& array : c.arrays) grads.emplace_back(array.size());
    std::vector<WeightGrads> pointers;
    for (size_t i = 0; i < grads.size(); i += 5) {
      Array* g = &grads[i];
      pointers.push_back({g[0].data(), g[1].data(), g[2].data(), g[3].data(), g[4].empty() ? nullptr : g[4].data()});
    }
    const BackwardArrays arrays{c.x.data(),
                                kept.y.data(),
                                c.dy.data(),
                                kept.h_n.data(),
                                lstm ? kept.c_n.data() : nullptr,
                                c.need_dx ? dx.data() : nullptr,
                                dh_0.data(),
                                lstm ? dc_0.data() : nullptr};
    fastrnn::backward(*kept.reserve, c.weights, arrays, pointers, threads, memory);
  }

  bool operator==(const Step& other) const {
    return y == other.y && h_n == other.h_n && c_n == other.c_n && dx == other.dx && dh_0 == other.dh_0 &&
           dc_0 == other.dc_0 && grads == other.grads;
  }
};

Step train(const Case& c, int threads, const std::shared_ptr<Memory>& memory) {
  Step step;
  step.forward(c, threads, memory);
  step.backward(c, step, threads, memory);
  return step;
}

template <class F>
void in_threads(int n, F f) {
  std::vector<std::thread> threads;
  for (int i = 0; i < n; ++i) threads.emplace_back(f);
  for (auto& thread : threads) thread.join();
}

void test_case(const Case& c) {
  const auto memory = std::make_shared<Memory>();
  for (int threads : {1, 2, 3}) {
    const Step expected = train(c, threads, memory);
    in_threads(4, [&] {
      for (int i = 0; i < 2; ++i) CHECK(train(c, threads, memory) == expected);
    });
    in_threads(3, [&] {  // one reserve, several readers
      Step step;
      step.y = expected.y;
      step.h_n = expected.h_n;
      step.c_n = expected.c_n;
      step.backward(c, expected, threads, memory);
      CHECK(step == expected);
    });
  }
}

// Several chunks of time and several passes over the weight gradients: threads use the same buffers again and again.
void test_long_case(CellType cell, bool ragged, int64_t proj_size) {
  Case c(cell, 1, ragged, proj_size, 700);
  const auto memory = std::make_shared<Memory>();
  for (bool need_dx : {true, false}) {
    c.need_dx = need_dx;
    const Step expected = train(c, 3, memory);
    for (float value : expected.dh_0) CHECK(std::isfinite(value));
    for (int i = 0; i < 2; ++i) CHECK(train(c, 3, memory) == expected);
  }
}

// Streams of their own in several threads, one team each.
void test_streams(const Case& c) {
  const size_t in = static_cast<size_t>(c.batch.batch * c.problem.input_size);
  const size_t out = static_cast<size_t>(c.batch.batch * c.problem.state_size());
  const auto run = [&] {
    const auto stream = make_stream(c.problem, c.weights, c.batch.batch, 2);
    Array y(out * static_cast<size_t>(c.batch.seq_len));
    for (size_t t = 0; t < static_cast<size_t>(c.batch.seq_len); ++t)
      stream->step(c.x.data() + t * in, y.data() + t * out);
    return y;
  };
  const Array expected = run();
  in_threads(3, [&] { CHECK(run() == expected); });
}

}  // namespace

void test_kernels() {
  for (Isa isa : available()) {
    set_current(name(isa));
    for (CellType cell : {CellType::lstm, CellType::gru, CellType::rnn_tanh}) {
      test_case(Case(cell, 1, false, 0));
      test_case(Case(cell, 1, true, 0));
      test_case(Case(cell, 2, true, 0));
      test_streams(Case(cell, 1, false, 0));
    }
    test_case(Case(CellType::lstm, 1, true, 33));
    test_long_case(CellType::gru, false, 0);
    test_long_case(CellType::lstm, true, 33);
  }
}
