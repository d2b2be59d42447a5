// Elman RNN (Elman 1990) with tanh or relu. See lstm.h for how a cell is written.
#pragma once

#include "cells/inline.h"

namespace fastrnn {

template <class Math, bool kRelu>
struct RnnCell {
  using V = typename Math::V;
  static constexpr bool kHasCellState = false;
  static constexpr bool kUsesPreviousState = false;
  static constexpr int kGates = 1;
  static constexpr int kSlots = 1;
  static constexpr int kXSlot = 0, kHSlot = 0;
  static FASTRNN_INLINE constexpr int gate_of_slot(int slot) { return slot; }

  static FASTRNN_INLINE void forward(V* slot, V /*h_prev*/, V /*c_prev*/, V& /*c*/, V& h) {
    h = kRelu ? Math::relu(slot[0]) : Math::tanh(slot[0]);
    slot[0] = h;
  }

  static FASTRNN_INLINE void backward(const V* slot, V /*h_prev*/, V /*c_prev*/, V /*c*/, V dh, V& /*dc*/, V* dslot,
                                      V& dh_prev) {
    const V h = slot[0];
    // tanh' = 1 - h^2; relu' = 0 where h <= 0, else 1 (NaN passes)
    dslot[0] = kRelu ? Math::zero_where_not_positive(h, dh) : dh * (Math::set1(1) - h * h);
    dh_prev = Math::set1(0);
  }
};

template <class Math>
using RnnTanhCell = RnnCell<Math, false>;
template <class Math>
using RnnReluCell = RnnCell<Math, true>;

}  // namespace fastrnn
