// What forward keeps for backward, and where in memory.
#pragma once

#include <vector>

#include "cpu/memory.h"
#include "cpu/plan.h"
#include "cpu/workspace.h"
#include "fastrnn.h"

namespace fastrnn {

// State of one layer and direction during a forward pass; kept when training. Offsets into one buffer.
struct DirectionSpace {
  size_t gates, cells, hidden, h_prev, h_0;
};

// With `keep`, every layer has its own; without, all share one and the layers' outputs take turns in two.
struct LayerSpaces {
  LayerSpaces(const Problem& problem, const Geometry& geometry, const Plan& plan, bool keep, Layout& layout);

  std::vector<DirectionSpace> directions;  // L*D
  std::vector<size_t> outputs;             // (rows, D*P) of each layer but the last
  int64_t cell_rows;
};

class CpuReserve final : public Reserve {
 public:
  CpuReserve(const Problem& problem, int64_t seq_len, const Geometry& geometry, Plan plan, const Kernels& kernels,
             const Dropout& dropout, const std::shared_ptr<Memory>& memory)
      : problem_(problem),
        seq_len_(seq_len),
        geometry(geometry),
        plan(std::move(plan)),
        kernels(&kernels),
        dropout(dropout),
        spaces(problem, geometry, this->plan, true, layout_),
        buffer(acquire(layout_.size(), memory)) {}

  void* data() const override { return buffer.data(); }
  size_t bytes() const override { return layout_.size(); }
  const Problem& problem() const override { return problem_; }
  int64_t seq_len() const override { return seq_len_; }
  int64_t batch() const override { return plan.batch(); }
  int64_t inputs() const override { return plan.inputs(); }

 private:
  Problem problem_;
  int64_t seq_len_;
  Layout layout_;

 public:
  const Geometry geometry;
  const Plan plan;
  const Kernels* kernels;  // those that wrote it
  const Dropout dropout;
  const LayerSpaces spaces;
  const Buffer buffer;
};

// Fills in what forward and backward tell a kernel alike. x and y come from the caller.
void describe_layer(const Problem& problem, const Plan& plan, const LayerSpaces& spaces, void* space, int64_t layer,
                    int direction, const Weights& weights, LayerArgs& args);

// Rows of a packed batch from the user's (T, B, width) array and back. A thread does its share of the time steps.
void pack_rows(const Plan& plan, const void* source, void* target, size_t row_bytes, int tid, int threads);
void unpack_rows(const Plan& plan, const void* source, void* target, size_t row_bytes, int tid, int threads);

// out = x * dropout mask of layer's output, (rows, D*P); in place is fine. A thread does its share of the time steps.
void apply_dropout(const Problem& problem, const Plan& plan, const Dropout& dropout, int64_t layer, const void* x,
                   void* out, int tid, int threads);

}  // namespace fastrnn
