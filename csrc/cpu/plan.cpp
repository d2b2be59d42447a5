#include "cpu/plan.h"

#include <algorithm>
#include <numeric>

#include "cpu/isa.h"

namespace fastrnn {

namespace {

// A chunk's gates should stay in cache between the input product and the recurrence. Training keeps them anyway, and
// its weight gradients should sum enough rows to be worth reading and writing the whole matrices.
constexpr int64_t kTrainingBytes = 2 << 20, kTrainingRows = 512, kInferenceBytes = 512 << 10, kInferenceRows = 64;

// Splitting the batch: a tile wants some rows to work on, and W_hh should leave room in a second-level cache of 1 MB.
constexpr int64_t kRowsPerThread = 4, kSharedWeightBytes = 768 << 10;

// Packing costs as much as some rows gain from it, the more the longer the rows of W_ih and W_hh are (measured: even at
// 8 rows for 64 + 64, 16 for 128 + 128, 30 for 256 + 256, and 50 for 512 + 512 and 1024 + 1024).
constexpr int64_t kFewRows = 48, kWidthPerRow = 16;

constexpr double kFlopsPerStepAndThread = 3e4, kFlopsPerThread = 2e5;

}  // namespace

const Kernels& kernels_in_use(Dtype dtype) {
  const int i = dtype == Dtype::float32 ? 0 : 1;
  switch (current()) {
#ifdef FASTRNN_HAVE_AVX512
    case Isa::avx512:
      return kKernelsAvx512[i];
#endif
#ifdef FASTRNN_HAVE_AVX2
    case Isa::avx2:
      return kKernelsAvx2[i];
#endif
    default:
      return kKernelsPortable[i];
  }
}

Geometry::Geometry(const Problem& problem, const Kernels& kernels)
    : cell(&kernels.cells[int(problem.cell)]),
      width(kernels.width),
      blocks((problem.hidden_size + width - 1) / width),
      state_blocks((problem.state_size() + width - 1) / width),
      gate_row(blocks * cell->slots * width),
      element(problem.element_size()) {}

Plan::Plan(const Batch& batch, const Geometry& geometry, bool training)
    : batch_(batch.batch), inputs_(batch.index ? batch.inputs : -1), packed_(batch.packed) {
  const size_t seq_len = batch_ ? size_t(batch.seq_len) : 0;
  const int64_t* lengths = batch.lengths;
  if (lengths && std::any_of(lengths, lengths + batch_, [&](int64_t n) { return n != batch.seq_len; })) {
    order_.resize(size_t(batch_));
    std::iota(order_.begin(), order_.end(), 0);
    std::stable_sort(order_.begin(), order_.end(), [&](int64_t a, int64_t b) { return lengths[a] > lengths[b]; });
    for (const int64_t b : order_) length_.push_back(lengths[b]);
  }
  count_.resize(seq_len, batch_);
  offset_.resize(seq_len + 1, 0);
  if (ragged()) {
    int64_t running = batch_;
    for (size_t t = 0; t < seq_len; t++) {
      while (running > 0 && length_[size_t(running - 1)] <= int64_t(t)) running--;
      count_[t] = running;
    }
  }
  for (size_t t = 0; t < seq_len; t++) offset_[t + 1] = offset_[t] + count_[t];

  const int64_t row_bytes = geometry.gate_row * int64_t(geometry.element);
  const int64_t target = training ? std::max(kTrainingRows, kTrainingBytes / row_bytes)
                                  : std::max(kInferenceRows, kInferenceBytes / row_bytes);
  chunk_step_.push_back(0);
  chunk_base_.push_back(0);
  for (size_t t = 1; t <= seq_len; t++) {
    const int64_t rows = offset_[t] - offset_[size_t(chunk_step_.back())];
    if (rows < target && t < seq_len) continue;
    const int64_t padded = rows | 1;  // odd, so that unit blocks do not meet in the same cache sets
    chunk_step_.push_back(int64_t(t));
    chunk_base_.push_back(chunk_base_.back() + padded);
    most_chunk_rows_ = std::max(most_chunk_rows_, padded);
  }

  // Of the user's (T, B), what belongs to rows.
  const auto pack = [&](const auto* source, auto& target) {
    if (!source || rows() == 0) return;
    target.resize(size_t(rows()));
    for (int64_t t = 0; t < batch.seq_len; t++) {
      for (int64_t r = 0; r < count(t); r++) target[size_t(offset(t) + r)] = source[t * batch_ + user_row(r)];
    }
  };
  pack(batch.resets, resets_);
  pack(batch.index, index_);
  if (has_index()) inputs_read_.resize(size_t(inputs_));
  for (const int32_t i : index_) inputs_read_[size_t(i)] = 1;
}

Steps Plan::steps() const {
  return {seq_len(),
          batch_,
          rows(),
          count_.data(),
          offset_.data(),
          int64_t(chunk_step_.size()) - 1,
          chunk_step_.data(),
          chunk_base_.data()};
}

int64_t Plan::last_row(int64_t r, bool reverse) const {
  const int64_t length = ragged() ? length_[size_t(r)] : seq_len();
  return length == 0 ? -1 : offset(reverse ? 0 : length - 1) + r;
}

int threads_worth(double flops, int64_t parts, int most) {
  return int(std::max(1.0, std::min({double(most), double(parts), flops / kFlopsPerThread})));
}

int threads_for(const Problem& problem, const Geometry& geometry, int64_t seq_len, int64_t batch, int most) {
  const double step =
      2.0 * double(batch) * double(problem.gates() * problem.hidden_size) * double(problem.state_size());
  const double input = 2.0 * double(batch) * double(problem.gates() * problem.hidden_size) * double(problem.input_size);
  const int by_step = int(std::max(1.0, std::min(double(most), step / kFlopsPerStepAndThread)));
  return threads_worth((step + input) * double(seq_len * problem.num_layers), geometry.blocks, by_step);
}

bool split_rows(const Problem& problem, const Geometry& geometry, const Plan& plan, int threads) {
  const int64_t bytes =
      problem.gates() * geometry.blocks * geometry.width * problem.state_size() * int64_t(geometry.element);
  return threads > 1 && plan.seq_len() > 1 && !plan.ragged() && !problem.proj_size &&
         plan.batch() >= kRowsPerThread * threads && bytes <= kSharedWeightBytes;
}

bool worth_packing(const Problem& problem, const Plan& plan) {
  const int64_t width = problem.layer_input_size(problem.num_layers - 1) + problem.state_size();
  return plan.rows() > std::min(kFewRows, width / kWidthPerRow);
}

}  // namespace fastrnn
