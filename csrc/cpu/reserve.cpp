#include "cpu/reserve.h"

#include "cpu/dropout.h"

namespace fastrnn {

LayerSpaces::LayerSpaces(const Problem& problem, const Geometry& geometry, const Plan& plan, bool keep, Layout& layout)
    : cell_rows((plan.batch() + (keep ? plan.rows() : 0)) | 1) {  // odd: unit blocks do not meet in the same cache sets
  const size_t element = geometry.element;
  const bool has_cells = problem.has_cell_state(), projected = problem.proj_size > 0;
  const auto bytes = [&](int64_t rows, int64_t width) { return size_t(rows) * size_t(width) * element; };
  for (int64_t layer = 0; layer < problem.num_layers; layer++) {
    for (int direction = 0; direction < problem.directions; direction++) {
      if (!keep && !directions.empty()) {
        directions.push_back(directions.front());
        continue;
      }
      DirectionSpace d{};
      d.gates = layout.add(bytes(keep ? plan.padded_rows() : plan.most_chunk_rows(), geometry.gate_row));
      if (has_cells) d.cells = layout.add(bytes(cell_rows, geometry.blocks * geometry.width));
      if (projected) d.hidden = layout.add(bytes(keep ? plan.rows() : plan.batch(), geometry.blocks * geometry.width));
      if (plan.resets()) d.h_prev = layout.add(bytes(keep ? plan.rows() : 2 * plan.batch(), problem.state_size()));
      d.h_0 = layout.add(bytes(plan.batch(), problem.state_size()));
      directions.push_back(d);
    }
    if (layer + 1 < problem.num_layers) {
      outputs.push_back(keep || layer < 2 ? layout.add(bytes(plan.rows(), problem.directions * problem.state_size()))
                                          : outputs[size_t(layer) - 2]);
    }
  }
}

void describe_layer(const Problem& problem, const Plan& plan, const LayerSpaces& spaces, void* space, int64_t layer,
                    int direction, const Weights& weights, LayerArgs& args) {
  const DirectionSpace& d = spaces.directions[size_t(layer * problem.directions + direction)];
  args.steps = plan.steps();
  args.reverse = direction == 1;
  args.input_size = problem.layer_input_size(layer);
  args.hidden_size = problem.hidden_size;
  args.state_size = problem.state_size();
  args.projected = problem.proj_size > 0;
  args.weights = weights;
  args.x_stride = args.input_size;
  args.index = layer == 0 ? plan.index() : nullptr;
  args.inputs = plan.inputs();
  args.inputs_read = plan.inputs_read();
  args.h_0 = at(space, d.h_0);
  args.resets = plan.resets();
  args.h_prev = at(space, d.h_prev);
  args.gates = at(space, d.gates);
  args.cells = at(space, d.cells);
  args.cell_rows = spaces.cell_rows;
  args.hidden = at(space, d.hidden);
}

void pack_rows(const Plan& plan, const void* source, void* target, size_t row_bytes, int tid, int threads) {
  for (int64_t t = share_begin(plan.seq_len(), tid, threads); t < share_begin(plan.seq_len(), tid + 1, threads); t++) {
    for (int64_t r = 0; r < plan.count(t); r++) {
      std::memcpy(static_cast<char*>(target) + size_t(plan.offset(t) + r) * row_bytes,
                  static_cast<const char*>(source) + size_t(t * plan.batch() + plan.user_row(r)) * row_bytes,
                  row_bytes);
    }
  }
}

void unpack_rows(const Plan& plan, const void* source, void* target, size_t row_bytes, int tid, int threads) {
  for (int64_t t = share_begin(plan.seq_len(), tid, threads); t < share_begin(plan.seq_len(), tid + 1, threads); t++) {
    for (int64_t r = 0; r < plan.batch(); r++) {
      char* out = static_cast<char*>(target) + size_t(t * plan.batch() + plan.user_row(r)) * row_bytes;
      if (r < plan.count(t)) {
        std::memcpy(out, static_cast<const char*>(source) + size_t(plan.offset(t) + r) * row_bytes, row_bytes);
      } else {
        std::memset(out, 0, row_bytes);
      }
    }
  }
}

void apply_dropout(const Problem& problem, const Plan& plan, const Dropout& dropout, int64_t layer, const void* x,
                   void* out, int tid, int threads) {
  const DropoutMask mask(dropout);
  const int64_t units = problem.state_size();
  const auto apply = [&](auto* from, auto* to) {
    for (int64_t t = share_begin(plan.seq_len(), tid, threads); t < share_begin(plan.seq_len(), tid + 1, threads);
         t++) {
      for (int64_t r = 0; r < plan.count(t); r++) {
        for (int d = 0; d < problem.directions; d++) {
          const int64_t at = ((plan.offset(t) + r) * problem.directions + d) * units;
          mask.apply(from + at, to + at, units, uint32_t(plan.user_row(r)), uint32_t(t),
                     uint32_t(layer * problem.directions + d));
        }
      }
    }
  };
  if (problem.dtype == Dtype::float32) {
    apply(static_cast<const float*>(x), static_cast<float*>(out));
  } else {
    apply(static_cast<const double*>(x), static_cast<double*>(out));
  }
}

}  // namespace fastrnn
