// GRU (Cho et al. 2014), reset gate applied after the recurrent product as in cuDNN and PyTorch, gates r z n.
// See lstm.h for how a cell is written.
#pragma once

#include "cells/inline.h"

namespace fastrnn {

template <class Math>
struct GruCell {
  using V = typename Math::V;
  static constexpr bool kHasCellState = false;
  static constexpr bool kUsesPreviousState = true;
  static constexpr int kGates = 3;
  // Slots nh r z nx, where nh = W_hn h + b_hn and nx = W_in x + b_in stay apart: those that W_hh feeds (0..2) and those
  // that W_ih feeds (1..3) are both contiguous.
  static constexpr int kSlots = 4;
  static constexpr int kXSlot = 1, kHSlot = 0;
  static FASTRNN_INLINE constexpr int gate_of_slot(int slot) { return slot == 0 ? 2 : slot - 1; }

  static FASTRNN_INLINE void forward(V* slot, V h_prev, V /*c_prev*/, V& /*c*/, V& h) {
    slot[1] = Math::sigmoid(slot[1]);
    slot[2] = Math::sigmoid(slot[2]);
    slot[3] = Math::tanh(slot[3] + slot[1] * slot[0]);
    h = (Math::set1(1) - slot[2]) * slot[3] + slot[2] * h_prev;
  }

  static FASTRNN_INLINE void backward(const V* slot, V h_prev, V /*c_prev*/, V /*c*/, V dh, V& /*dc*/, V* dslot,
                                      V& dh_prev) {
    const V nh = slot[0], r = slot[1], z = slot[2], n = slot[3];
    const V one = Math::set1(1);
    dslot[3] = dh * (one - z) * (one - n * n);       // h = (1 - z) n + z h_prev, n = tanh(nx + r nh)
    dslot[0] = dslot[3] * r;                         // through r nh
    dslot[1] = dslot[3] * nh * (r * (one - r));      // r = sigmoid(.)
    dslot[2] = dh * (h_prev - n) * (z * (one - z));  // z = sigmoid(.)
    dh_prev = dh * z;
  }
};

}  // namespace fastrnn
