// One step at a time: the forward kernel on a batch of one time step, with panels packed once and a state that stays
// here.
#include <algorithm>

#include "cpu/memory.h"
#include "cpu/plan.h"
#include "cpu/threads.h"
#include "cpu/workspace.h"

namespace fastrnn {

namespace {

class CpuStream final : public Stream {
 public:
  CpuStream(const Problem& problem, const std::vector<Weights>& weights, int64_t batch, int max_threads)
      : problem_(problem), geometry_(problem, kernels_in_use(problem.dtype)), layers_(size_t(problem.num_layers)) {
    // The number of threads, which the packing depends on, is that of the batch the stream began with.
    threads_ = threads_for(problem, geometry_, 1, std::max<int64_t>(batch, 1), max_threads);
    pack(weights);
    set_batch(batch);
  }

  const Problem& problem() const override { return problem_; }
  int64_t batch() const override { return plan_->batch(); }

  void step(const void* x, void* y) override {
    if (batch() == 0) return;
    const void* input = x;
    for (size_t l = 0; l < layers_.size(); l++) {
      ForwardArgs& a = layers_[l];
      a.x = input;
      a.h_0 = hidden(l, current_);
      a.y = hidden(l, 1 - current_);
      input = a.y;
    }
    run_layers();
    current_ = 1 - current_;
    std::memcpy(y, input, state_bytes());
  }

  void get_state(void* h, void* c) const override {
    for (size_t l = 0; l < layers_.size() && batch() > 0; l++) {
      std::memcpy(static_cast<char*>(h) + l * state_bytes(), hidden(l, current_), state_bytes());
      if (has_cells()) cells(l).read(static_cast<char*>(c) + l * cell_bytes(), batch(), same, same, 0, 1);
    }
  }

  void set_state(const void* h, const void* c) override {
    for (size_t l = 0; l < layers_.size() && batch() > 0; l++) {
      std::memcpy(hidden(l, current_), static_cast<const char*>(h) + l * state_bytes(), state_bytes());
      if (has_cells()) cells(l).fill(static_cast<const char*>(c) + l * cell_bytes(), batch(), same, 0, 1);
    }
  }

  void reset(const int64_t* rows, int64_t n) override {
    const size_t row = state_bytes() / size_t(std::max<int64_t>(batch(), 1));
    for (size_t l = 0; l < layers_.size(); l++) {
      for (int64_t i = 0; i < (rows ? n : batch()); i++) {
        const int64_t r = rows ? rows[i] : i;
        std::memset(static_cast<char*>(hidden(l, current_)) + size_t(r) * row, 0, row);
        if (!has_cells()) continue;
        const Blocks c = cells(l);
        for (int64_t b = 0; b < c.count(); b++) std::memset(c.row(b, r), 0, size_t(c.lanes) * c.element);
      }
    }
  }

  void select(const int64_t* rows, int64_t n) override {
    const size_t h_row = size_t(problem_.state_size()) * geometry_.element;
    const size_t c_row = size_t(problem_.hidden_size) * geometry_.element;
    const size_t layers = layers_.size();
    std::vector<char> h(layers * state_bytes()), c(has_cells() ? layers * cell_bytes() : 0);
    std::vector<char> new_h(layers * size_t(n) * h_row), new_c(has_cells() ? layers * size_t(n) * c_row : 0);
    get_state(h.data(), c.data());
    for (size_t l = 0; l < layers; l++) {
      for (int64_t i = 0; i < n; i++) {
        std::memcpy(&new_h[(l * size_t(n) + size_t(i)) * h_row], &h[l * state_bytes() + size_t(rows[i]) * h_row],
                    h_row);
        if (has_cells()) {
          std::memcpy(&new_c[(l * size_t(n) + size_t(i)) * c_row], &c[l * cell_bytes() + size_t(rows[i]) * c_row],
                      c_row);
        }
      }
    }
    if (n != batch()) set_batch(n);
    set_state(new_h.data(), new_c.data());
  }

 private:
  void run_layers() {
    run_team(
        threads_,
        [](void* context, Team& team, int tid) {
          const CpuStream& stream = *static_cast<const CpuStream*>(context);
          for (const ForwardArgs& a : stream.layers_) stream.geometry_.cell->forward(a, team, tid);
        },
        this);
  }

  bool has_cells() const { return problem_.has_cell_state(); }
  static int64_t same(int64_t r) { return r; }
  size_t state_bytes() const { return size_t(batch() * problem_.state_size()) * geometry_.element; }
  size_t cell_bytes() const { return size_t(batch() * problem_.hidden_size) * geometry_.element; }
  void* hidden(size_t layer, int which) const {
    return at(state_.data(), hidden_[size_t(which)] + layer * hidden_stride_);
  }
  Blocks cells(size_t layer) const {
    return {layers_[layer].cells, layers_[layer].cell_rows, geometry_.width, problem_.hidden_size, geometry_.element};
  }

  void pack(const std::vector<Weights>& weights) {
    const Geometry& g = geometry_;
    const int64_t gate_lanes = problem_.gates() * g.blocks * g.width;
    Layout layout;
    std::vector<size_t> offsets;
    for (int64_t l = 0; l < problem_.num_layers; l++) {
      offsets.push_back(layout.add(size_t(gate_lanes * problem_.layer_input_size(l)) * g.element));
      offsets.push_back(layout.add(size_t(gate_lanes * problem_.state_size()) * g.element));
      offsets.push_back(
          layout.add(problem_.proj_size ? size_t(problem_.hidden_size * g.state_blocks * g.width) * g.element : 0));
      offsets.push_back(layout.add(size_t(g.gate_row) * g.element));
    }
    panels_ = acquire(layout.size(), nullptr);
    const Plan nothing({}, g, false);  // no steps: the kernel packs and returns
    for (size_t l = 0; l < layers_.size(); l++) {
      ForwardArgs& a = layers_[l];
      a = {};
      a.steps = nothing.steps();
      a.input_size = a.x_stride = problem_.layer_input_size(int64_t(l));
      a.hidden_size = problem_.hidden_size;
      a.state_size = a.y_stride = problem_.state_size();
      a.projected = problem_.proj_size > 0;
      a.weights = weights[l];
      a.packing = Packing::now;
      a.w_ih_panels = at(panels_.data(), offsets[4 * l]);
      a.w_hh_panels = at(panels_.data(), offsets[4 * l + 1]);
      a.w_hr_panels = at(panels_.data(), offsets[4 * l + 2]);
      a.bias_panels = at(panels_.data(), offsets[4 * l + 3]);
    }
    run_layers();
    for (ForwardArgs& a : layers_) {
      a.weights = {};
      a.packing = Packing::done;
    }
  }

  // Room for a batch of n rows, all zero.
  void set_batch(int64_t n) {
    Batch batch;
    batch.seq_len = 1;
    batch.batch = n;
    auto plan = std::make_unique<Plan>(batch, geometry_, false);
    const Geometry& g = geometry_;
    Layout layout;
    const size_t stride = (size_t(n * problem_.state_size()) * g.element + 127) / 128 * 128;
    const size_t hidden[2] = {layout.add(stride * layers_.size()), layout.add(stride * layers_.size())};
    const size_t gates = layout.add(size_t(plan->most_chunk_rows() * g.gate_row) * g.element);
    const size_t projected = layout.add(problem_.proj_size ? size_t(n * g.blocks * g.width) * g.element : 0);
    std::vector<size_t> cells;
    for (size_t l = 0; l < layers_.size(); l++) {
      cells.push_back(layout.add(has_cells() ? size_t((n | 1) * g.blocks * g.width) * g.element : 0));
    }
    Buffer state = acquire(layout.size(), nullptr);
    std::memset(state.data(), 0, layout.size());
    state_ = std::move(state);
    plan_ = std::move(plan);
    hidden_stride_ = stride;
    hidden_[0] = hidden[0];
    hidden_[1] = hidden[1];
    for (size_t l = 0; l < layers_.size(); l++) {
      ForwardArgs& a = layers_[l];
      a.steps = plan_->steps();
      a.gates = at(state_.data(), gates);
      a.cells = at(state_.data(), cells[l]);
      a.cell_rows = n | 1;
      a.hidden = at(state_.data(), projected);
    }
  }

  const Problem problem_;
  const Geometry geometry_;
  int threads_ = 1;
  std::vector<ForwardArgs> layers_;
  Buffer panels_, state_;
  std::unique_ptr<Plan> plan_;
  size_t hidden_[2] = {0, 0}, hidden_stride_ = 0;
  int current_ = 0;
};

}  // namespace

std::unique_ptr<Stream> make_stream(const Problem& problem, const std::vector<Weights>& weights, int64_t batch,
                                    int max_threads) {
  return std::make_unique<CpuStream>(problem, weights, batch, max_threads);
}

}  // namespace fastrnn
