// LSTM (Hochreiter & Schmidhuber 1997; forget gate of Gers et al. 2000), gates i f g o.
//
// A cell is written once for every dtype and device: Math gives the type V (a SIMD vector, or a scalar on a GPU) and
// its functions. `slot` holds one V per gate quantity: pre-activations on entry, what backward needs on return.
#pragma once

#include "cells/inline.h"

namespace fastrnn {

template <class Math>
struct LstmCell {
  using V = typename Math::V;
  static constexpr bool kHasCellState = true;
  static constexpr bool kUsesPreviousState = false;
  static constexpr int kGates = 4;
  static constexpr int kSlots = 4;  // i f g o; both W_ih x and W_hh h feed all four
  static constexpr int kXSlot = 0, kHSlot = 0;
  static FASTRNN_INLINE constexpr int gate_of_slot(int slot) { return slot; }

  static FASTRNN_INLINE void forward(V* slot, V /*h_prev*/, V c_prev, V& c, V& h) {
    slot[0] = Math::sigmoid(slot[0]);
    slot[1] = Math::sigmoid(slot[1]);
    slot[2] = Math::tanh(slot[2]);
    slot[3] = Math::sigmoid(slot[3]);
    c = slot[1] * c_prev + slot[0] * slot[2];
    h = slot[3] * Math::tanh(c);
  }

  // dc: gradient of c_t on entry, of c_{t-1} on return. dh_prev: the part of dh_{t-1} that does not pass through W_hh.
  static FASTRNN_INLINE void backward(const V* slot, V /*h_prev*/, V c_prev, V c, V dh, V& dc, V* dslot, V& dh_prev) {
    const V i = slot[0], f = slot[1], g = slot[2], o = slot[3];
    const V one = Math::set1(1);
    const V tanh_c = Math::tanh(c);
    dc += dh * o * (one - tanh_c * tanh_c);    // h = o tanh(c)
    dslot[0] = dc * g * (i * (one - i));       // c = f c_prev + i g, i = sigmoid(.)
    dslot[1] = dc * c_prev * (f * (one - f));  // f = sigmoid(.)
    dslot[2] = dc * i * (one - g * g);         // g = tanh(.)
    dslot[3] = dh * tanh_c * (o * (one - o));  // o = sigmoid(.)
    dc *= f;
    dh_prev = Math::set1(0);
  }
};

}  // namespace fastrnn
