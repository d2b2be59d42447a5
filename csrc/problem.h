// Problem as Python sees it, for every extension.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "fastrnn.h"

namespace fastrnn {

namespace py = pybind11;

// As Python spells CellType and Dtype.
constexpr const char* kCellNames[] = {"lstm", "gru", "rnn_tanh", "rnn_relu"};
constexpr const char* kDtypeNames[] = {"float32", "float64", "float16", "bfloat16"};
constexpr int kCpuDtypes = 2;  // of these the CPU has kernels for the first

inline int index_of(const char* const* names, int n, const std::string& name, const char* what) {
  for (int i = 0; i < n; i++) {
    if (name == names[i]) return i;
  }
  throw py::value_error(std::string("fastrnn: unknown ") + what + " '" + name + "'");
}

inline Dtype dtype_of(const std::string& name, int dtypes) {
  return Dtype(index_of(kDtypeNames, dtypes, name, "dtype"));
}

inline Problem make_problem(const std::string& cell, Dtype dtype, int64_t input_size, int64_t hidden_size,
                            int64_t proj_size, int64_t num_layers, bool bidirectional, bool bias) {
  Problem p;
  p.cell = CellType(index_of(kCellNames, kCellTypes, cell, "cell"));
  p.dtype = dtype;
  const int64_t most = int64_t(1) << 40;  // products of two sizes stay within 64 bits
  if (input_size < 1 || hidden_size < 1 || num_layers < 1 || proj_size < 0 || input_size > most || hidden_size > most ||
      num_layers > most || proj_size >= hidden_size || (proj_size && p.cell != CellType::lstm)) {
    throw py::value_error("fastrnn: sizes out of range");
  }
  p.input_size = input_size;
  p.hidden_size = hidden_size;
  p.proj_size = proj_size;
  p.num_layers = num_layers;
  p.directions = bidirectional ? 2 : 1;
  p.bias = bias;
  return p;
}

inline void check_count(int64_t seq_len, int64_t batch) {
  if (seq_len < 0 || batch < 0 || seq_len > INT32_MAX || batch > INT32_MAX || seq_len * batch >= (int64_t(1) << 40)) {
    throw py::value_error("fastrnn: more than 2**31 - 1 steps or rows");
  }
}

// The first `dtypes` of kDtypeNames are taken.
inline void bind_problem(py::module_& m, int dtypes) {
  using namespace py::literals;
  py::class_<Problem>(m, "Problem", py::module_local())
      .def(py::init([dtypes](const std::string& cell, const std::string& dtype, int64_t input_size, int64_t hidden_size,
                             int64_t proj_size, int64_t num_layers, bool bidirectional, bool bias) {
             return make_problem(cell, dtype_of(dtype, dtypes), input_size, hidden_size, proj_size, num_layers,
                                 bidirectional, bias);
           }),
           "cell"_a, "dtype"_a, "input_size"_a, "hidden_size"_a, "proj_size"_a, "num_layers"_a, "bidirectional"_a,
           "bias"_a)
      .def_property_readonly("cell", [](const Problem& p) { return kCellNames[int(p.cell)]; })
      .def_property_readonly("dtype", [](const Problem& p) { return kDtypeNames[int(p.dtype)]; })
      .def_readonly("input_size", &Problem::input_size)
      .def_readonly("hidden_size", &Problem::hidden_size)
      .def_readonly("proj_size", &Problem::proj_size)
      .def_readonly("num_layers", &Problem::num_layers)
      .def_property_readonly("bidirectional", [](const Problem& p) { return p.directions == 2; })
      .def_readonly("bias", &Problem::bias)
      .def_readonly("directions", &Problem::directions)
      .def_property_readonly("state_size", &Problem::state_size);
}

}  // namespace fastrnn
