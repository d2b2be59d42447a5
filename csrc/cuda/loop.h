// The kernels of the one-SM path, for layers of few units: a block keeps all of W_hh and runs all steps of a few rows
// of the batch. Blocks share nothing.
//
// A warp owns 16 units with all their gates. The product of a step leaves each thread the gates of two units and two
// rows, so that the cell follows in registers, where c stays too; only h, or in backward the gate gradients, pass
// through shared memory, and threads meet once a step. What a step needs besides the product is fetched while the one
// before it is computed.
#pragma once

#include "cuda/resident.h"
#include "cuda/scan.h"

namespace fastrnn {
namespace cuda {

constexpr int kSliceRows = 8;  // of the batch, for a block: the columns of a tensor core's product
constexpr int kWarpUnits = 16;

// What a thread has: of every tile of 16 units x 8 rows two of each, side by side. Number i of a tile is of unit i / 2
// and row i % 2.
struct Place {
  int warp, lane;
  int64_t unit, row, hidden_size, batch;  // the first of both, and their ends
  FASTRNN_DEVICE Place(int64_t slice, int64_t hidden_size, int64_t batch)
      : warp(int(threadIdx.x) / 32),
        lane(int(threadIdx.x) % 32),
        unit(warp * kWarpUnits + lane / 4 * 2),
        row(slice * kSliceRows + lane % 4 * 2),
        hidden_size(hidden_size),
        batch(batch) {}
  // Units come in pairs.
  FASTRNN_DEVICE bool exists(int r) const { return unit < hidden_size && row + r < batch; }
  // In (kSliceRows, pitch).
  FASTRNN_DEVICE int in_slice(int r, int pitch) const { return (lane % 4 * 2 + r) * pitch + int(unit); }
  // In (B, stride).
  FASTRNN_DEVICE int64_t in_batch(int r, int64_t stride) const { return (row + r) * stride + unit; }
  // The unit of a tile's row.
  static FASTRNN_DEVICE int unit_of(int row) { return row % 8 * 2 + row / 8; }
};

// An array's place that moves from step to step; null stays null.
template <class T>
class Walk {
 public:
  FASTRNN_DEVICE Walk(T* first, int64_t first_step, int64_t step_size, bool back)
      : at_(first ? first + first_step * step_size : nullptr),
        by_(!first ? 0
            : back ? -step_size
                   : step_size) {}
  FASTRNN_DEVICE T* operator+(int64_t offset) const { return at_ + offset; }
  FASTRNN_DEVICE explicit operator bool() const { return at_; }
  FASTRNN_DEVICE void move() { at_ += by_; }

 private:
  T* at_;
  int64_t by_;
};

template <class T>
FASTRNN_DEVICE Pair<T> pair_at(const T* p) {
  return *reinterpret_cast<const Pair<T>*>(p);
}
template <class T>
FASTRNN_DEVICE void put_pair(T* p, const Pair<T>& pair) {
  *reinterpret_cast<Pair<T>*>(p) = pair;
}

// ---- forward

template <class N>
struct ForwardLoop {
  int64_t hidden_size, width, slices;  // slices: of the batch, for each direction
  ForwardScan<N> scans[2];
};

// The rows of W_hh that a warp's units need, slot by slot.
template <class N, class Cell>
struct GatesOfUnits {
  using T = typename N::Storage;
  const T* w_hh;
  int64_t hidden_size, first_unit;
  FASTRNN_DEVICE const T* row(int r, int k) const {
    const int64_t u = first_unit + Place::unit_of(r % kWarpUnits);
    const int gate = Cell::gate_of_slot(Cell::kHSlot + r / kWarpUnits);
    return u < hidden_size && k < hidden_size ? w_hh + (gate * hidden_size + u) * hidden_size + k : nullptr;
  }
};

template <class N, class Cell, int kSize>
struct ForwardLoopShape {
  using Weights = Resident<N, Cell::kGates, kSize / N::kStep>;
  static constexpr int kPitch = resident_pitch<N>(kSize);
  static constexpr size_t kStates = 2 * kSliceRows * kPitch * sizeof(typename N::Storage);
  static constexpr size_t kSharedBytes = kStates + kSize / kWarpUnits * Weights::kSharedBytes;
};

template <class N, template <class> class CellOf, int kSize>
__global__ void __launch_bounds__(2 * kSize, 1) forward_loop(ForwardLoop<N> p) {
  using T = typename N::Storage;
  using Sum = typename N::Sum;
  using Cell = CellOf<ScalarMath<N>>;
  using Shape = ForwardLoopShape<N, Cell, kSize>;
  constexpr int kPitch = Shape::kPitch, kThreads = 2 * kSize;
  const ForwardScan<N>& s = p.scans[blockIdx.x / p.slices];
  const Rows& rows = s.rows;
  const int64_t H = p.hidden_size, B = rows.batch, steps = rows.seq_len;
  const Place place(blockIdx.x % p.slices, H, B);
  const bool exists[2] = {place.exists(0), place.exists(1)};
  const int64_t length[2] = {exists[0] ? rows.length(place.row) : 0, exists[1] ? rows.length(place.row + 1) : 0};

  const int64_t first = rows.reverse ? steps - 1 : 0;
  const auto walk = [&](auto* array, int64_t stride) {
    using Number = std::remove_pointer_t<decltype(array)>;
    return Walk<Number>(array ? array + place.in_batch(0, stride) : nullptr, first, B * stride, rows.reverse);
  };
  auto x = walk(s.x_gates, s.x_stride);
  auto slots_out = walk(s.slots, Cell::kSlots * H);
  auto c_out = walk(s.c, H);
  auto y = walk(s.y, p.width);
  struct Inputs {
    Pair<T> x[Cell::kGates][2];
    bool reset[2];
  };
  const auto fetch = [&](int64_t t, Inputs& in) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
      in.reset[r] = rows.resets && exists[r] && rows.reset(t, place.row + r);
#pragma unroll
      for (int g = 0; g < Cell::kGates; g++) {
        if (exists[r]) in.x[g][r] = pair_at(x + (r * s.x_stride + g * H));
      }
    }
    x.move();
  };
  Inputs next = {};
  if (steps > 0) fetch(first, next);

  T* const states = reinterpret_cast<T*>(shared_memory());  // two of (kSliceRows, kPitch): h of this step and the next
  for (int i = int(threadIdx.x); i < 2 * kSliceRows * kPitch; i += kThreads) states[i] = T{};
  typename Shape::Weights weights;
  weights.load(GatesOfUnits<N, Cell>{s.w_hh, H, place.warp * kWarpUnits},
               shared_memory() + Shape::kStates + place.warp * Shape::Weights::kSharedBytes, place.lane);
  Sum bias[Cell::kSlots][2] = {}, h[4] = {}, c[4] = {};
#pragma unroll
  for (int u = 0; u < 2; u++) {
    if (!s.b_ih || place.unit >= H) continue;
#pragma unroll
    for (int g = 0; g < Cell::kGates; g++) {
      bias[Cell::kXSlot + g][u] += to_sum(s.b_ih[Cell::gate_of_slot(Cell::kXSlot + g) * H + place.unit + u]);
      bias[Cell::kHSlot + g][u] += to_sum(s.b_hh[Cell::gate_of_slot(Cell::kHSlot + g) * H + place.unit + u]);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int64_t at = place.in_batch(i % 2, H) + i / 2;
    if (exists[i % 2] && s.h_0) h[i] = to_sum(s.h_0[at]);
    if (Cell::kHasCellState && exists[i % 2] && s.c_0) c[i] = to_sum(s.c_0[at]);
  }
  __syncthreads();
  T* now = states;
  T* after = states + kSliceRows * kPitch;
  // h as a step reads it.
  const auto hand_over = [&](T* to, int r, bool reset) {
    if (!exists[r]) return;
    const Pair<T> pair = N::operands(Pair<T>::of(h[r], h[2 + r]));
    put_pair(to + place.in_slice(r, kPitch), reset ? Pair<T>{} : pair);
  };
#pragma unroll
  for (int r = 0; r < 2; r++) hand_over(now, r, next.reset[r]);
  __syncthreads();

  int64_t t = first;
  for (int64_t n = 0; n < steps; n++) {
    const Inputs in = next;
    if (n + 1 < steps) fetch(rows.after(t), next);
    Sum products[Cell::kGates][4];
    weights.multiply(products, now, kPitch, place.lane);
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const bool lives = t < length[r];
      Sum slots[2][Cell::kSlots], h_new[2], c_new[2];
#pragma unroll
      for (int u = 0; u < 2; u++) {
        const int i = 2 * u + r;
#pragma unroll
        for (int k = 0; k < Cell::kSlots; k++) slots[u][k] = bias[k][u];
#pragma unroll
        for (int g = 0; g < Cell::kGates; g++) {
          slots[u][Cell::kXSlot + g] += in.x[g][r].sum(u);
          slots[u][Cell::kHSlot + g] += products[g][i];
        }
        Cell::forward(slots[u], in.reset[r] ? Sum(0) : h[i], in.reset[r] ? Sum(0) : c[i], c_new[u], h_new[u]);
      }
      const Pair<T> h_pair = Pair<T>::of(h_new[0], h_new[1]);
#pragma unroll
      for (int u = 0; u < 2; u++) {
        if (lives) h[2 * u + r] = h_pair.sum(u);
        if (Cell::kHasCellState && lives) c[2 * u + r] = c_new[u];
      }
      if (exists[r]) {
        put_pair(y + r * p.width, lives ? h_pair : Pair<T>{});
        if (slots_out) {  // past a row's end nobody reads them
#pragma unroll
          for (int k = 0; k < Cell::kSlots; k++) {
            put_pair(slots_out + (r * Cell::kSlots + k) * H, Pair<T>::of(slots[0][k], slots[1][k]));
          }
          if (Cell::kHasCellState) put_pair(c_out + r * H, Pair<Sum>::of(c_new[0], c_new[1]));
        }
      }
      hand_over(after, r, next.reset[r]);
    }
    slots_out.move();
    c_out.move();
    y.move();
    t = rows.after(t);
    T* const swapped = now;
    now = after;
    after = swapped;
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 4; i++) {
    if (!exists[i % 2]) continue;
    const int64_t at = place.in_batch(i % 2, H) + i / 2;
    s.h_n[at] = from_sum<T>(h[i]);
    if (Cell::kHasCellState) s.c_n[at] = from_sum<T>(c[i]);
  }
}

// ---- backward

template <class N>
struct BackwardLoop {
  int64_t hidden_size, width, slices;
  BackwardScan<N> scans[2];
};

// The rows of the transposed W_hh of a warp's units, every gate's part kSize long.
template <class N, int kGates, int kSize>
struct TransposedOfUnits {
  using T = typename N::Storage;
  const T* w_hh_t;
  int64_t hidden_size, first_unit;
  FASTRNN_DEVICE const T* row(int r, int k) const {
    const int64_t u = first_unit + Place::unit_of(r), of_gate = k % kSize;
    return u < hidden_size && of_gate < hidden_size ? w_hh_t + (u * kGates + k / kSize) * hidden_size + of_gate
                                                    : nullptr;
  }
};

template <class N, class Cell, int kSize>
struct BackwardLoopShape {
  using Weights = Resident<N, 1, Cell::kGates * kSize / N::kStep>;
  static constexpr int kPitch = resident_pitch<N>(Cell::kGates * kSize);
  static constexpr size_t kGradients = 2 * kSliceRows * kPitch * sizeof(typename N::Storage);
  static constexpr size_t kSharedBytes = kGradients + kSize / kWarpUnits * Weights::kSharedBytes;
};

template <class N, template <class> class CellOf, int kSize>
__global__ void __launch_bounds__(2 * kSize, 1) backward_loop(BackwardLoop<N> p) {
  using T = typename N::Storage;
  using Sum = typename N::Sum;
  using Cell = CellOf<ScalarMath<N>>;
  using Shape = BackwardLoopShape<N, Cell, kSize>;
  constexpr int kPitch = Shape::kPitch, kThreads = 2 * kSize;
  const BackwardScan<N>& s = p.scans[blockIdx.x / p.slices];
  const Rows& rows = s.h.rows;
  const int64_t H = p.hidden_size, B = rows.batch, steps = rows.seq_len;
  const Place place(blockIdx.x % p.slices, H, B);
  const bool exists[2] = {place.exists(0), place.exists(1)};
  const int64_t length[2] = {exists[0] ? rows.length(place.row) : 0, exists[1] ? rows.length(place.row + 1) : 0};

  const int64_t last = rows.reverse ? 0 : steps - 1;
  const auto walk = [&](auto* array, int64_t stride) {
    using Number = std::remove_pointer_t<decltype(array)>;
    return Walk<Number>(array ? array + place.in_batch(0, stride) : nullptr, last, B * stride, !rows.reverse);
  };
  auto slots_in = walk(s.slots, Cell::kSlots * H);
  auto dslots_out = walk(s.dslots, Cell::kSlots * H);
  auto dy = walk(s.dy, p.width);
  // The states that a row's steps started from: those of the step before, or the initial ones.
  auto h_before = walk(Cell::kUsesPreviousState ? s.h.steps : nullptr, s.h.stride);
  auto c_before = walk(Cell::kHasCellState ? s.c.steps : nullptr, H);
  Pair<Sum> c[2] = {};
  if (Cell::kHasCellState && steps > 0) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
      if (exists[r]) c[r] = pair_at(c_before + r * H);
    }
  }
  struct Inputs {
    Pair<T> slots[Cell::kSlots][2], dy[2], h_before[2];
    Pair<Sum> c_before[2];
    bool reset[2];
  };
  const auto fetch = [&](int64_t t, Inputs& in) {
    const int64_t before = rows.before(t);
    h_before.move();
    c_before.move();
#pragma unroll
    for (int r = 0; r < 2; r++) {
      in.reset[r] = rows.resets && exists[r] && rows.reset(t, place.row + r);
      if (!exists[r]) continue;  // past a row's end are numbers too, which nobody uses
#pragma unroll
      for (int k = 0; k < Cell::kSlots; k++) in.slots[k][r] = pair_at(slots_in + (r * Cell::kSlots + k) * H);
      if (dy) in.dy[r] = pair_at(dy + r * p.width);
      const bool any = before >= 0 && before < length[r];
      if (Cell::kUsesPreviousState) {
        in.h_before[r] = pair_at(any ? h_before + r * s.h.stride : s.h.initial + place.in_batch(r, H));
      }
      if (Cell::kHasCellState) {
        in.c_before[r] = pair_at(any ? c_before + r * H : s.c.initial + place.in_batch(r, H));
      }
    }
    slots_in.move();
    dy.move();
  };
  Inputs next = {};
  if (steps > 0) fetch(last, next);

  // Two of (kSliceRows, kPitch): the gate gradients of this step and of the one before it in time.
  T* const gradients = reinterpret_cast<T*>(shared_memory());
  for (int i = int(threadIdx.x); i < 2 * kSliceRows * kPitch; i += kThreads) gradients[i] = T{};
  typename Shape::Weights weights;
  weights.load(TransposedOfUnits<N, Cell::kGates, kSize>{s.w_hh_t, H, place.warp * kWarpUnits},
               shared_memory() + Shape::kGradients + place.warp * Shape::Weights::kSharedBytes, place.lane);
  // direct: what reaches h other than through W_hh of the step that was computed last; `through`, whether that counts.
  Sum direct[4] = {}, dc[4] = {};
  bool through[2] = {};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int64_t at = place.in_batch(i % 2, H) + i / 2;
    if (exists[i % 2] && s.dh_n) direct[i] = to_sum(s.dh_n[at]);
    if (Cell::kHasCellState && exists[i % 2] && s.dc_n) dc[i] = to_sum(s.dc_n[at]);
  }
  __syncthreads();
  T* now = gradients;
  T* after = gradients + kSliceRows * kPitch;

  int64_t t = last;
  for (int64_t n = 0; n < steps; n++) {
    const Inputs in = next;
    if (n + 1 < steps) fetch(rows.before(t), next);
    Sum product[1][4];
    weights.multiply(product, now, kPitch, place.lane);
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const bool lives = t < length[r], cut = in.reset[r];  // cut: the state before it acts on nothing
      Sum dslots[2][Cell::kSlots];
#pragma unroll
      for (int u = 0; u < 2; u++) {
        const int i = 2 * u + r;
        Sum slots[Cell::kSlots], dh_prev, dc_new = dc[i];
        if (through[r]) direct[i] += product[0][i];
#pragma unroll
        for (int k = 0; k < Cell::kSlots; k++) slots[k] = in.slots[k][r].sum(u);
        Cell::backward(slots, cut ? Sum(0) : in.h_before[r].sum(u), cut ? Sum(0) : in.c_before[r].sum(u), c[r].sum(u),
                       direct[i] + in.dy[r].sum(u), dc_new, dslots[u], dh_prev);
        if (!lives) continue;  // the row hands them on
        direct[i] = cut ? Sum(0) : dh_prev;
        dc[i] = cut ? Sum(0) : dc_new;
      }
      c[r] = in.c_before[r];
      through[r] = lives && !cut;
      if (!exists[r]) continue;
#pragma unroll
      for (int k = 0; k < Cell::kSlots; k++) {
        const Pair<T> pair = lives ? Pair<T>::of(dslots[0][k], dslots[1][k]) : Pair<T>{};
        put_pair(dslots_out + (r * Cell::kSlots + k) * H, pair);
        const int g = k - Cell::kHSlot;
        if (g < 0 || g >= Cell::kGates) continue;
        put_pair(after + place.in_slice(r, kPitch) + g * kSize, cut ? Pair<T>{} : N::operands(pair));
      }
    }
    dslots_out.move();
    t = rows.before(t);
    T* const swapped = now;
    now = after;
    after = swapped;
    __syncthreads();
  }
  Sum product[1][4];
  weights.multiply(product, now, kPitch, place.lane);
#pragma unroll
  for (int i = 0; i < 4; i++) {
    if (!exists[i % 2]) continue;
    const int64_t at = place.in_batch(i % 2, H) + i / 2;
    if (s.dh_0) s.dh_0[at] = from_sum<T>(through[i % 2] ? direct[i] + product[0][i] : direct[i]);
    if (Cell::kHasCellState && s.dc_0) s.dc_0[at] = from_sum<T>(dc[i]);
  }
}

}  // namespace cuda
}  // namespace fastrnn
