// Which rows of the batch live at a step, and where each takes its state from. A length that is out of range ends at
// the last step, or before the first. Rows stand as in the user's arrays: row b of step t at t * batch + b. In the
// reverse direction t falls; a row joins at its last step, with its initial state.
#pragma once

#include "cuda/device.h"

namespace fastrnn {
namespace cuda {

struct Rows {
  int64_t seq_len, batch;
  const int64_t* lengths;  // (B) or null: all seq_len
  const uint8_t* resets;   // (T, B) or null
  bool reverse;

  FASTRNN_DEVICE int64_t length(int64_t b) const {
    if (!lengths || lengths[b] > seq_len) return seq_len;
    return lengths[b] > 0 ? lengths[b] : 0;
  }
  FASTRNN_DEVICE bool lives(int64_t t, int64_t b) const { return t < length(b); }
  // Of row b of step t, counted from the first step's.
  FASTRNN_DEVICE bool lives(int64_t row) const { return !lengths || lives(row / batch, row % batch); }
  FASTRNN_DEVICE bool reset(int64_t t, int64_t b) const { return resets && resets[t * batch + b]; }
  // The step before t and the one after it, in the order of the direction.
  FASTRNN_DEVICE int64_t before(int64_t t) const { return reverse ? t + 1 : t - 1; }
  FASTRNN_DEVICE int64_t after(int64_t t) const { return reverse ? t - 1 : t + 1; }
  FASTRNN_DEVICE bool first(int64_t t, int64_t b) const { return reverse ? t + 1 == length(b) : t == 0; }
  // Where the initial state would stand: the step before a row's first.
  FASTRNN_DEVICE int64_t start(int64_t b) const { return reverse ? length(b) : -1; }
};

// h_{t-1} or c_{t-1} of the rows of step t: what the step before left, the initial state, or, null, zeros.
template <class T>
struct PreviousState {
  Rows rows;
  int64_t t;
  const T* steps;  // (T, B, stride)
  int64_t stride;
  const T* initial;  // (B, width) or null
  int64_t width;
  int chunk;

  FASTRNN_DEVICE const T* row(int64_t b) const {
    if (b >= rows.batch || !rows.lives(t, b) || rows.reset(t, b)) return nullptr;
    if (rows.first(t, b)) return initial ? initial + b * width : nullptr;
    return steps + (rows.before(t) * rows.batch + b) * stride;
  }
};

// The gate gradients through which h_t acts on the step after t; null where it acts on none. at_start: t is that of
// the initial state, row by row.
template <class T>
struct NextGates {
  Rows rows;
  int64_t t;
  bool at_start;
  const T* gates;  // (T, B, stride)
  int64_t stride;
  int chunk;

  FASTRNN_DEVICE const T* row(int64_t b) const {
    if (b >= rows.batch || !(at_start || rows.lives(t, b))) return nullptr;
    const int64_t next = rows.after(at_start ? rows.start(b) : t);
    if (next < 0 || !rows.lives(next, b) || rows.reset(next, b)) return nullptr;
    return gates + (next * rows.batch + b) * stride;
  }
};

// Rows of all steps, for products over all of them. Null: rows of zeros.

template <class T>
struct LiveRows {
  Rows rows;
  const T* data;  // (T, B, stride)
  int64_t stride;
  FASTRNN_DEVICE const T* row(int64_t row) const { return rows.lives(row) ? data + row * stride : nullptr; }
};

// The states that steps started from.
template <class T>
struct PreviousStates {
  PreviousState<T> state;  // of any step
  FASTRNN_DEVICE const T* row(int64_t row) const {
    PreviousState<T> s = state;
    s.t = row / s.rows.batch;
    return s.row(row % s.rows.batch);
  }
};

// Blocks of rows, of which number first_block comes first and the others follow in their order.
template <class T>
struct RotatedBlocks {
  const T* data;
  int64_t stride, block, first_block;
  FASTRNN_DEVICE const T* row(int64_t row) const {
    const int64_t place = row / block, source = place == 0 ? first_block : place - (place <= first_block);
    return data + (source * block + row % block) * stride;
  }
};

}  // namespace cuda
}  // namespace fastrnn
