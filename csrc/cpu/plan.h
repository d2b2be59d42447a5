// How a batch is walked: rows packed by length, time chunks, number of threads. Shared by forward, backward and
// streams.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/kernels.h"
#include "fastrnn.h"

namespace fastrnn {

const Kernels& kernels_in_use(Dtype dtype);

// Sizes that follow from the problem and the ISA's vector width, in elements unless said otherwise.
struct Geometry {
  Geometry(const Problem& problem, const Kernels& kernels);

  const CellKernels* cell;
  int64_t width;         // lanes
  int64_t blocks;        // of units
  int64_t state_blocks;  // of P
  int64_t gate_row;      // a row of gates: blocks * slots * lanes
  size_t element;        // bytes
};

// The rows of a batch: sorted by length, longest first, when lengths differ; in the user's order otherwise.
class Plan {
 public:
  Plan(const Batch& batch, const Geometry& geometry, bool training);

  Steps steps() const;
  bool ragged() const { return !order_.empty(); }
  // Whether the user's arrays hold other rows, or in another order, than the kernels want.
  bool copies_rows() const { return ragged() && !packed_; }
  bool copies_inputs() const { return copies_rows() && !has_index(); }
  // Batch row of the user's that stands at place r.
  int64_t user_row(int64_t r) const { return ragged() ? order_[size_t(r)] : r; }
  // Row that holds the final state of place r in this direction; -1: r has no steps.
  int64_t last_row(int64_t r, bool reverse) const;
  const uint8_t* resets() const { return resets_.empty() ? nullptr : resets_.data(); }
  const int32_t* index() const { return index_.empty() ? nullptr : index_.data(); }
  const uint8_t* inputs_read() const { return inputs_read_.empty() ? nullptr : inputs_read_.data(); }
  bool has_index() const { return inputs_ >= 0; }
  int64_t inputs() const { return inputs_; }  // rows of x; -1 without an index
  int64_t padded_inputs() const { return has_index() ? inputs_ | 1 : 0; }
  int64_t rows() const { return offset_.back(); }
  int64_t count(int64_t t) const { return count_[size_t(t)]; }
  int64_t offset(int64_t t) const { return offset_[size_t(t)]; }
  int64_t seq_len() const { return int64_t(count_.size()); }  // 0 where there is no batch
  int64_t batch() const { return batch_; }
  int64_t padded_rows() const { return chunk_base_.back(); }
  int64_t most_chunk_rows() const { return most_chunk_rows_; }  // padded

 private:
  int64_t batch_, inputs_, most_chunk_rows_ = 0;
  bool packed_;
  std::vector<int64_t> order_, length_, count_, offset_, chunk_step_, chunk_base_;
  std::vector<uint8_t> resets_, inputs_read_;
  std::vector<int32_t> index_;
};

// Threads worth using, at most `most`, for a call of so many flops that splits into so many parts.
int threads_worth(double flops, int64_t parts, int most);

// The same for layers: no more than unit blocks, and enough work a step to pay for meeting.
int threads_for(const Problem& problem, const Geometry& geometry, int64_t seq_len, int64_t batch, int most);

// Whether threads should split the rows of the batch rather than the units: they then meet once a time chunk instead of
// once a step, but each reads all of W_hh, which must stay in its cache.
bool split_rows(const Problem& problem, const Geometry& geometry, const Plan& plan, int threads);

// Whether there are enough rows to pay for packing the weights.
bool worth_packing(const Problem& problem, const Plan& plan);

}  // namespace fastrnn
