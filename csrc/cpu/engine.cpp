// A stack of layers, forward and backward: lays out memory, starts one team of threads and walks layers and directions.
#include <algorithm>
#include <type_traits>

#include "cpu/reserve.h"
#include "cpu/threads.h"

namespace fastrnn {

namespace {

// Rows that a pass over the weight gradients sums: enough to be worth reading and writing the whole matrices.
constexpr int64_t kOuterRows = 512;

// Packed weights of the widest layer, in elements; forward and backward panels take the same room.
struct PanelSizes {
  PanelSizes(const Problem& problem, const Geometry& g) {
    const int64_t gates = problem.gates() * g.blocks * g.width;
    const int64_t input = std::max(problem.input_size, problem.num_layers > 1 ? problem.layer_input_size(1) : 0);
    const auto padded = [&](int64_t n) { return (n + g.width - 1) / g.width * g.width; };
    w_ih = gates * padded(input);
    w_hh = gates * padded(problem.state_size());
    w_hr = problem.proj_size ? g.blocks * g.width * padded(problem.proj_size) : 0;
  }
  int64_t w_ih, w_hh, w_hr;
};

// Part i of a (L*D, B, n) array, or null.
template <class Void>
Void* part(Void* array, int64_t i, int64_t batch, int64_t n, size_t element) {
  using Char = std::conditional_t<std::is_const_v<Void>, const char, char>;
  return array ? static_cast<Char*>(array) + size_t(i * batch * n) * element : nullptr;
}

struct ForwardPass {
  const Problem& problem;
  const Geometry& geometry;
  const Plan& plan;
  const LayerSpaces& spaces;
  const std::vector<Weights>& weights;
  const ForwardArrays& arrays;
  const Dropout& dropout;
  bool training;
  bool by_rows;
  bool packs;
  void* space = nullptr;      // of spaces
  void* workspace = nullptr;  // of the offsets below
  size_t x = 0, y = 0, dropped = 0, w_ih_panels = 0, w_hh_panels = 0, w_hr_panels = 0, bias_panels = 0, input_gates = 0;
  std::vector<ForwardArgs> layers{};

  bool drops() const { return training && dropout.p > 0; }

  void plan_workspace(Layout& layout) {
    const PanelSizes panels(problem, geometry);
    const auto bytes = [&](int64_t n) { return size_t(n) * geometry.element; };
    if (plan.copies_inputs()) x = layout.add(bytes(plan.rows() * problem.input_size));
    if (plan.copies_rows()) {
      y = layout.add(bytes(plan.rows() * problem.directions * problem.state_size()));
    }
    if (drops()) dropped = layout.add(bytes(plan.rows() * problem.directions * problem.state_size()));
    w_ih_panels = layout.add(packs ? bytes(panels.w_ih) : 0);
    w_hh_panels = layout.add(packs ? bytes(panels.w_hh) : 0);
    w_hr_panels = layout.add(packs ? bytes(panels.w_hr) : 0);
    bias_panels = layout.add(bytes(geometry.gate_row));
    input_gates = layout.add(bytes(plan.padded_inputs() * geometry.gate_row));
  }

  void describe() {
    const int64_t width = problem.directions * problem.state_size();
    for (int64_t layer = 0; layer < problem.num_layers; layer++) {
      const bool last = layer + 1 == problem.num_layers;
      for (int direction = 0; direction < problem.directions; direction++) {
        ForwardArgs a{};
        describe_layer(problem, plan, spaces, space, layer, direction,
                       weights[size_t(layer * problem.directions + direction)], a);
        a.x = layer == 0 ? (plan.copies_inputs() ? at(workspace, x) : arrays.x)
              : drops()  ? at(workspace, dropped)
                         : at(space, spaces.outputs[size_t(layer) - 1]);
        void* y_rows = !last                ? at(space, spaces.outputs[size_t(layer)])
                       : plan.copies_rows() ? at(workspace, y)
                                            : arrays.y;
        a.y = static_cast<char*>(y_rows) + size_t(direction * problem.state_size()) * geometry.element;
        a.y_stride = width;
        a.by_rows = by_rows;
        a.training = training;
        a.packing = packs ? Packing::now : Packing::none;
        a.w_ih_panels = at(workspace, w_ih_panels);
        a.w_hh_panels = at(workspace, w_hh_panels);
        a.w_hr_panels = at(workspace, w_hr_panels);
        a.bias_panels = at(workspace, bias_panels);
        a.input_gates = at(workspace, input_gates);
        layers.push_back(a);
      }
    }
  }

  void run(Team& team, int tid) const {
    const size_t x_row = size_t(problem.input_size) * geometry.element;
    const size_t y_row = size_t(problem.directions * problem.state_size()) * geometry.element;
    if (plan.copies_inputs()) pack_rows(plan, arrays.x, at(workspace, x), x_row, tid, team.size());
    for (int64_t layer = 0; layer < problem.num_layers; layer++) {
      for (int direction = 0; direction < problem.directions; direction++) {
        const int64_t i = layer * problem.directions + direction;
        begin(i, team, tid);
        team.barrier(tid);
        geometry.cell->forward(layers[size_t(i)], team, tid);
        finish(i, direction == 1, team, tid);
        team.barrier(tid);
      }
      if (drops() && layer + 1 < problem.num_layers) {
        apply_dropout(problem, plan, dropout, layer, at(space, spaces.outputs[size_t(layer)]), at(workspace, dropped),
                      tid, team.size());
        team.barrier(tid);
      }
    }
    if (plan.copies_rows()) unpack_rows(plan, at(workspace, y), arrays.y, y_row, tid, team.size());
  }

  Blocks cells(const ForwardArgs& a) const {
    return {a.cells, a.cell_rows, geometry.width, a.hidden_size, geometry.element};
  }

  void begin(int64_t i, const Team& team, int tid) const {
    const ForwardArgs& a = layers[size_t(i)];
    const int64_t batch = plan.batch();
    const size_t row = size_t(a.state_size) * geometry.element;
    const void* h_0 = part(arrays.h_0, i, batch, a.state_size, geometry.element);
    char* copy = static_cast<char*>(const_cast<void*>(a.h_0));
    for (int64_t r = share_begin(batch, tid, team.size()); r < share_begin(batch, tid + 1, team.size()); r++) {
      if (h_0) {
        std::memcpy(copy + size_t(r) * row, static_cast<const char*>(h_0) + size_t(plan.user_row(r)) * row, row);
      } else {
        std::memset(copy + size_t(r) * row, 0, row);
      }
    }
    if (problem.has_cell_state()) {
      cells(a).fill(
          part(arrays.c_0, i, batch, a.hidden_size, geometry.element), batch,
          [&](int64_t r) { return plan.user_row(r); }, tid, team.size());
    }
  }

  void finish(int64_t i, bool reverse, const Team& team, int tid) const {
    const ForwardArgs& a = layers[size_t(i)];
    const int64_t batch = plan.batch();
    const size_t row = size_t(a.state_size) * geometry.element;
    char* h_n = static_cast<char*>(part(arrays.h_n, i, batch, a.state_size, geometry.element));
    for (int64_t r = share_begin(batch, tid, team.size()); r < share_begin(batch, tid + 1, team.size()); r++) {
      const int64_t last = plan.last_row(r, reverse);
      const char* source = last < 0 ? static_cast<const char*>(a.h_0) + size_t(r) * row
                                    : static_cast<const char*>(a.y) + size_t(last * a.y_stride) * geometry.element;
      char* target = h_n + size_t(plan.user_row(r)) * row;
      if (target != source) std::memcpy(target, source, row);  // the same where a caller wants one step's y as h_n
    }
    if (problem.has_cell_state()) {
      const auto final_row = [&](int64_t r) {
        const int64_t last = plan.last_row(r, reverse);
        return training && last >= 0 ? batch + last : r;
      };
      cells(a).read(
          part(arrays.c_n, i, batch, a.hidden_size, geometry.element), batch, final_row,
          [&](int64_t r) { return plan.user_row(r); }, tid, team.size());
    }
  }
};

struct BackwardPass {
  const Problem& problem;
  const CpuReserve& reserve;
  const std::vector<Weights>& weights;
  const BackwardArrays& arrays;
  const std::vector<WeightGrads>& grads;
  void* workspace = nullptr;  // of the offsets below
  size_t x = 0, y = 0, dx = 0, dropped = 0, dy[2] = {0, 0}, dh = 0, dc = 0, w_ih_panels = 0, w_hh_panels = 0;
  size_t w_hr_panels = 0, dgates = 0, partial = 0, dhidden = 0, bias_sums = 0, columns = 0, outer_tiles = 0;
  size_t input_gates = 0, input_parts = 0;
  std::vector<BackwardArgs> layers{};

  const Geometry& geometry() const { return reserve.geometry; }
  const Plan& plan() const { return reserve.plan; }
  bool drops() const { return reserve.dropout.p > 0; }
  int64_t width() const { return problem.directions * problem.state_size(); }
  int64_t outer_rows() const {
    return std::clamp<int64_t>(std::max(plan().most_chunk_rows(), plan().inputs()), 1, kOuterRows);
  }
  size_t row_bytes(int64_t n) const { return size_t(n) * geometry().element; }

  void plan_workspace(Layout& layout, int threads) {
    const Geometry& g = geometry();
    const PanelSizes panels(problem, g);
    const int64_t rows = plan().rows();
    const auto bytes = [&](int64_t n) { return size_t(n) * g.element; };
    if (plan().copies_rows()) y = layout.add(bytes(rows * width()));
    if (plan().copies_inputs()) {
      x = layout.add(bytes(rows * problem.input_size));
      dx = layout.add(arrays.dx ? bytes(rows * problem.input_size) : 0);
    }
    if (drops()) dropped = layout.add(bytes(rows * width()));
    // The top layer's dy is the user's own unless rows are packed.
    const int64_t gradients = std::min<int64_t>(2, problem.num_layers - 1 + (plan().copies_rows() ? 1 : 0));
    for (int i = 0; i < 2; i++) dy[i] = layout.add(i < gradients ? bytes(rows * width()) : 0);
    dh = layout.add(bytes(plan().batch() * g.state_blocks * g.width));
    dc = layout.add(bytes(problem.has_cell_state() ? plan().batch() * g.blocks * g.width : 0));
    w_ih_panels = layout.add(bytes(panels.w_ih));
    w_hh_panels = layout.add(bytes(panels.w_hh));
    w_hr_panels = layout.add(bytes(panels.w_hr));
    dgates = layout.add(bytes(plan().most_chunk_rows() * g.gate_row + g.width));
    partial = layout.add(bytes(2 * threads * plan().batch() * g.state_blocks * g.width));
    dhidden = layout.add(problem.proj_size ? bytes(plan().most_chunk_rows() * g.state_blocks * g.width + g.width) : 0);
    bias_sums = layout.add(bytes(g.gate_row));
    const int64_t input = std::max(problem.input_size, problem.num_layers > 1 ? width() : 0);
    columns =
        layout.add(bytes(outer_rows() * reserve.kernels->columns_size(input, problem.state_size(),
                                                                      problem.proj_size ? problem.hidden_size : 0)));
    outer_tiles = layout.add(bytes(threads * reserve.kernels->tiles_size(outer_rows())));
    if (plan().has_index()) {
      input_gates = layout.add(bytes(plan().padded_inputs() * g.gate_row + g.width));
      input_parts = layout.add(bytes(threads * plan().inputs() * g.cell->x_slots * g.width));
    }
  }

  // Gradients of a layer's output: of the top one the user's; below, the dx of the layer above, in turns.
  void* output_gradient(int64_t layer) const {
    const int64_t above = problem.num_layers - 1 - layer;
    if (above == 0 && !plan().copies_rows()) return const_cast<void*>(arrays.dy);
    if (above == 0 && !arrays.dy) return nullptr;
    return at(workspace, dy[(above + (plan().copies_rows() ? 0 : 1)) % 2]);
  }

  const void* input(int64_t layer) const {
    if (layer == 0) return plan().copies_inputs() ? at(workspace, x) : arrays.x;
    return drops() ? at(workspace, dropped) : output(layer - 1);
  }

  const void* output(int64_t layer) const {
    if (layer + 1 < problem.num_layers) return at(reserve.buffer.data(), reserve.spaces.outputs[size_t(layer)]);
    return plan().copies_rows() ? at(workspace, y) : arrays.y;
  }

  void describe() {
    for (int64_t layer = 0; layer < problem.num_layers; layer++) {
      for (int direction = 0; direction < problem.directions; direction++) {
        const size_t i = size_t(layer * problem.directions + direction);
        const size_t column = row_bytes(direction * problem.state_size());
        BackwardArgs a{};
        describe_layer(problem, plan(), reserve.spaces, reserve.buffer.data(), layer, direction, weights[i], a);
        a.x = input(layer);
        a.y = static_cast<const char*>(output(layer)) + column;
        const void* dy_rows = output_gradient(layer);
        a.dy = dy_rows ? static_cast<const char*>(dy_rows) + column : nullptr;
        a.y_stride = a.dy_stride = width();
        a.dx = layer > 0                             ? output_gradient(layer - 1)
               : arrays.dx && plan().copies_inputs() ? at(workspace, dx)
                                                     : arrays.dx;
        a.add_dx = direction == 1;
        a.dh = at(workspace, dh);
        a.need_dh_0 = arrays.dh_0;
        a.dc = at(workspace, dc);
        a.grads = grads[i];
        a.add_grads = arrays.accumulate;
        a.packing = worth_packing(problem, plan()) ? Packing::now : Packing::none;
        a.w_ih_panels = at(workspace, w_ih_panels);
        a.w_hh_panels = at(workspace, w_hh_panels);
        a.w_hr_panels = at(workspace, w_hr_panels);
        a.dgates = at(workspace, dgates);
        a.dgates_rows = plan().most_chunk_rows();
        a.partial = at(workspace, partial);
        a.dhidden = at(workspace, dhidden);
        a.bias_sums = at(workspace, bias_sums);
        a.columns = at(workspace, columns);
        a.outer_tiles = at(workspace, outer_tiles);
        a.outer_rows = outer_rows();
        a.input_gates = at(workspace, input_gates);
        a.input_parts = at(workspace, input_parts);
        layers.push_back(a);
      }
    }
  }

  // Those of a batch without rows, which no kernel touches.
  void clear_gradients() const {
    if (plan().has_index() && arrays.dx)
      std::memset(arrays.dx, 0, size_t(plan().inputs()) * row_bytes(problem.input_size));
    if (arrays.accumulate) return;
    for (size_t i = 0; i < grads.size(); i++) {
      const int64_t layer = int64_t(i) / problem.directions, gates = problem.gates() * problem.hidden_size;
      const auto clear = [&](void* grad, int64_t n) {
        if (grad) std::memset(grad, 0, size_t(n) * geometry().element);
      };
      clear(grads[i].w_ih, gates * problem.layer_input_size(layer));
      clear(grads[i].w_hh, gates * problem.state_size());
      clear(grads[i].b_ih, gates);
      clear(grads[i].b_hh, gates);
      clear(grads[i].w_hr, problem.proj_size * problem.hidden_size);
    }
  }

  void run(Team& team, int tid) const {
    const Geometry& g = geometry();
    if (plan().rows() == 0 && tid == 0) clear_gradients();
    const int64_t batch = plan().batch(), top = problem.num_layers - 1;
    if (plan().copies_inputs()) {
      pack_rows(plan(), arrays.x, at(workspace, x), row_bytes(problem.input_size), tid, team.size());
    }
    if (plan().copies_rows()) {
      pack_rows(plan(), arrays.y, at(workspace, y), row_bytes(width()), tid, team.size());
      if (arrays.dy) pack_rows(plan(), arrays.dy, output_gradient(top), row_bytes(width()), tid, team.size());
    }
    const auto user_row = [&](int64_t r) { return plan().user_row(r); };
    const auto same = [](int64_t r) { return r; };
    for (int64_t layer = top; layer >= 0; layer--) {
      if (drops() && layer > 0) {
        apply_dropout(problem, plan(), reserve.dropout, layer - 1, output(layer - 1), at(workspace, dropped), tid,
                      team.size());
      }
      for (int direction = 0; direction < problem.directions; direction++) {
        const int64_t i = layer * problem.directions + direction;
        const BackwardArgs& a = layers[size_t(i)];
        const Blocks dh{a.dh, batch, g.width, a.state_size, g.element},
            dc{a.dc, batch, g.width, a.hidden_size, g.element};
        const bool has_cells = problem.has_cell_state();
        dh.fill(part(arrays.dh_n, i, batch, a.state_size, g.element), batch, user_row, tid, team.size());
        if (has_cells) {
          dc.fill(part(arrays.dc_n, i, batch, a.hidden_size, g.element), batch, user_row, tid, team.size());
        }
        team.barrier(tid);
        reserve.geometry.cell->backward(a, team, tid);
        team.barrier(tid);
        if (arrays.dh_0)
          dh.read(part(arrays.dh_0, i, batch, a.state_size, g.element), batch, same, user_row, tid, team.size());
        if (has_cells && arrays.dc_0) {
          dc.read(part(arrays.dc_0, i, batch, a.hidden_size, g.element), batch, same, user_row, tid, team.size());
        }
        team.barrier(tid);
      }
      if (drops() && layer > 0) {
        apply_dropout(problem, plan(), reserve.dropout, layer - 1, output_gradient(layer - 1),
                      output_gradient(layer - 1), tid, team.size());
        team.barrier(tid);
      }
    }
    if (plan().copies_inputs() && arrays.dx) {
      unpack_rows(plan(), at(workspace, dx), arrays.dx, row_bytes(problem.input_size), tid, team.size());
    }
  }
};

template <class Pass>
void run_pass(int threads, Pass& pass) {
  run_team(threads, [](void* context, Team& team, int tid) { static_cast<Pass*>(context)->run(team, tid); }, &pass);
}

}  // namespace

std::unique_ptr<Reserve> forward(const Problem& problem, const Batch& batch, const std::vector<Weights>& weights,
                                 const ForwardArrays& arrays, const Dropout& dropout, bool training, int max_threads,
                                 const std::shared_ptr<Memory>& memory) {
  const Kernels& kernels = kernels_in_use(problem.dtype);
  const Geometry geometry(problem, kernels);
  Plan plan(batch, geometry, training);
  const int threads = threads_for(problem, geometry, batch.seq_len, batch.batch, max_threads);

  const auto run = [&](const Plan& plan, const LayerSpaces& spaces, void* space, Layout layout, size_t reserved) {
    ForwardPass pass{problem,
                     geometry,
                     plan,
                     spaces,
                     weights,
                     arrays,
                     dropout,
                     training,
                     split_rows(problem, geometry, plan, threads),
                     worth_packing(problem, plan),
                     space};
    pass.plan_workspace(layout);
    if (memory) memory->note(reserved + layout.size());
    const Buffer buffer = acquire(layout.size(), memory);
    pass.workspace = buffer.data();
    if (!pass.space) pass.space = buffer.data();
    pass.describe();
    run_pass(threads, pass);
  };

  if (training) {
    auto reserve =
        std::make_unique<CpuReserve>(problem, batch.seq_len, geometry, std::move(plan), kernels, dropout, memory);
    run(reserve->plan, reserve->spaces, reserve->buffer.data(), Layout(), reserve->bytes());
    return reserve;
  }
  Layout layout;
  const LayerSpaces spaces(problem, geometry, plan, false, layout);
  run(plan, spaces, nullptr, layout, 0);
  return nullptr;
}

void backward(const Reserve& kept, const std::vector<Weights>& weights, const BackwardArrays& arrays,
              const std::vector<WeightGrads>& grads, int max_threads, const std::shared_ptr<Memory>& memory) {
  const CpuReserve& reserve = static_cast<const CpuReserve&>(kept);
  const Problem& problem = reserve.problem();
  const int threads = threads_for(problem, reserve.geometry, reserve.seq_len(), reserve.batch(), max_threads);
  BackwardPass pass{problem, reserve, weights, arrays, grads};
  Layout layout;
  pass.plan_workspace(layout, threads);
  if (memory) memory->note(reserve.bytes() + layout.size());
  const Buffer buffer = acquire(layout.size(), memory);
  pass.workspace = buffer.data();
  pass.describe();
  run_pass(threads, pass);
}

}  // namespace fastrnn
