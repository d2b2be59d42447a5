// One ISA's kernels: included by kernels_<isa>.cpp with FASTRNN_ISA (a namespace) and FASTRNN_KERNELS (the table)
// defined.
//
// All code of ours that those sources include lives in that namespace, and nothing from the C++ library that leaves
// code behind is used: a linker may keep one copy of an inline function for the whole program, and it must not be one
// compiled for a CPU that is not there.

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"
#include "cpu/backward.h"
#include "cpu/cross_entropy.h"
#include "cpu/forward.h"
#include "cpu/math.h"
#include "cpu/optimizer.h"
#include "cpu/probe.h"
#include "cpu/product.h"
#include "cpu/top_symbols.h"

namespace fastrnn {
namespace FASTRNN_ISA {

template <class T, template <class> class CellOf>
constexpr CellKernels cell_kernels() {
  using G = Geometry<CellOf<SimdMath<T>>>;
  return {G::kSlots, G::kXSlots, G::kHSlots, &forward_layer<T, CellOf>, &backward_layer<T, CellOf>};
}

template <class T>
constexpr Kernels kernels() {
  return {kWidth<T>,
          kMaxVectors,
          {cell_kernels<T, LstmCell>(), cell_kernels<T, GruCell>(), cell_kernels<T, RnnTanhCell>(),
           cell_kernels<T, RnnReluCell>()},
          &WeightGradients<T, LstmCell<SimdMath<T>>>::columns_size,
          &WeightGradients<T, LstmCell<SimdMath<T>>>::tiles_size,
          &cross_entropy<T>,
          &pack_symbols<T>,
          &top_symbols<T>,
          &CrossEntropyPass<T>::panels_size,
          &CrossEntropyPass<T>::dlogits_size,
          &product<T>,
          &product_tiles_size<T>,
          &optimize<T>,
          &sum_of_squares<T>,
          &fma_chains<T>,
          &read_once<T>};
}

}  // namespace FASTRNN_ISA

const Kernels FASTRNN_KERNELS[2] = {FASTRNN_ISA::kernels<float>(), FASTRNN_ISA::kernels<double>()};

}  // namespace fastrnn
