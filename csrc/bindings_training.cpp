// The part of fastrnn._core that models need beside the layers: the output layer, products, embeddings, optimizers.
#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "arrays.h"
#include "cpu/memory.h"
#include "cpu/threads.h"
#include "fastrnn.h"
#include "problem.h"

namespace py = pybind11;
using namespace py::literals;

namespace fastrnn {
namespace {

struct SymbolShape {
  Dtype dtype;
  int64_t element, symbols, input_size;
};

// Of weight (V, I), which is checked, as is bias (V) or None.
SymbolShape checked_symbols(const py::object& weight, const py::object& bias) {
  if (!py::isinstance<py::array>(weight)) throw py::type_error("_core: weight must be an array");
  const auto array = py::reinterpret_borrow<py::array>(weight);
  const Dtype dtype = dtype_of(py::str(array.dtype()), kCpuDtypes);
  if (array.ndim() != 2) throw py::value_error("_core: weight must have two dimensions");
  if (array.size() < 1) throw py::value_error("_core: weight must not be empty");
  const SymbolShape shape{dtype, array.itemsize(), array.shape(0), array.shape(1)};
  checked(weight, "weight", 'f', shape.element, {shape.symbols, shape.input_size});
  if (!bias.is_none()) checked(bias, "bias", 'f', shape.element, {shape.symbols});
  return shape;
}

const void* data_or_null(const py::object& array) {
  return array.is_none() ? nullptr : py::reinterpret_borrow<py::array>(array).data();
}

// nats (N); dx, dweight and dbias are arrays or None.
py::array cross_entropy_arrays(const py::array& x, const py::object& weight, const py::object& bias,
                               const py::object& targets, double scale, const py::object& dx, const py::object& dweight,
                               const py::object& dbias, const std::shared_ptr<Memory>& memory, int threads,
                               bool accumulate, size_t logit_bytes) {
  const SymbolShape sizes = checked_symbols(weight, bias);
  if (x.ndim() != 2) throw py::value_error("_core: x must have two dimensions");
  CrossEntropy problem;
  problem.dtype = sizes.dtype;
  problem.rows = x.shape(0);
  problem.input_size = sizes.input_size;
  problem.symbols = sizes.symbols;
  const Shape x_shape{problem.rows, problem.input_size}, weight_shape{problem.symbols, problem.input_size};
  problem.x = checked(x, "x", 'f', sizes.element, x_shape).data();
  problem.weight = data_or_null(weight);
  problem.bias = data_or_null(bias);
  const auto write = [&](const py::object& array, const char* name, Shape shape) -> void* {
    if (array.is_none()) return nullptr;
    py::array out = checked(array, name, 'f', sizes.element, shape);
    return out.mutable_data();
  };
  problem.scale = scale;
  problem.targets = static_cast<const int32_t*>(checked(targets, "targets", 'i', 4, {problem.rows}).data());
  for (int64_t r = 0; r < problem.rows; r++) {
    if (problem.targets[r] >= problem.symbols) throw py::value_error("_core: targets out of range");
  }
  problem.dx = write(dx, "dx", x_shape);
  problem.dweight = write(dweight, "dweight", weight_shape);
  problem.dbias = write(dbias, "dbias", {problem.symbols});
  problem.accumulate = accumulate;
  problem.logit_bytes = logit_bytes;
  py::array nats(x.dtype(), std::vector<py::ssize_t>{py::ssize_t(problem.rows)});
  problem.nats = nats.mutable_data();
  {
    py::gil_scoped_release release;
    cross_entropy(problem, threads ? threads : num_threads(), memory);
  }
  return nats;
}

class PyTopSymbols {
 public:
  PyTopSymbols(const py::object& weight, const py::object& bias, int64_t rows, const std::shared_ptr<Memory>& memory,
               int threads)
      : weight(weight), bias(bias), sizes(checked_symbols(weight, bias)) {
    const void *weights = data_or_null(weight), *biases = data_or_null(bias);
    py::gil_scoped_release release;
    symbols = make_top_symbols(sizes.dtype, sizes.symbols, sizes.input_size, weights, biases, rows,
                               threads ? threads : num_threads(), memory);
  }

  // ids int32 and log p float64, (N, count). never: int32 (M), symbols that are not chosen.
  std::pair<py::array_t<int32_t>, py::array_t<double>> find(const py::array& x, int64_t count,
                                                            const py::array& never) const {
    if (x.ndim() != 2) throw py::value_error("_core: x must have two dimensions");
    const int64_t rows = x.shape(0);
    const void* from = checked(x, "x", 'f', sizes.element, {rows, sizes.input_size}).data();
    if (count < 1 || count > sizes.symbols) throw py::value_error("_core: count out of range");
    const auto* excluded = static_cast<const int32_t*>(checked(never, "never", 'i', 4, {never.size()}).data());
    std::vector<uint8_t> mask(never.size() ? size_t(sizes.symbols) : 0);
    for (int64_t i = 0; i < never.size(); i++) {
      if (excluded[i] < 0 || excluded[i] >= sizes.symbols) throw py::value_error("_core: never out of range");
      mask[size_t(excluded[i])] = 1;
    }
    const std::vector<py::ssize_t> shape{py::ssize_t(rows), py::ssize_t(count)};
    py::array_t<int32_t> ids(shape);
    py::array_t<double> log_p(shape);
    int32_t* const ids_data = ids.mutable_data();
    double* const log_p_data = log_p.mutable_data();
    {
      py::gil_scoped_release release;
      symbols->find(from, rows, count, mask.empty() ? nullptr : mask.data(), ids_data, log_p_data);
    }
    return {ids, log_p};
  }

 private:
  py::object weight, bias;
  SymbolShape sizes;
  std::unique_ptr<TopSymbols> symbols;
};

// A matrix or the transpose of one, neither of which need be contiguous: in one direction its numbers are neighbours.
struct Matrix {
  const void* data;
  int64_t rows, columns, stride;
  bool transposed;

  Matrix(const py::handle& object, const char* name, const py::dtype& dtype) {
    if (!py::isinstance<py::array>(object)) throw py::type_error(std::string("_core: ") + name + " must be an array");
    const auto array = py::reinterpret_borrow<py::array>(object);
    const auto refuse = [&](const char* what) { throw py::value_error(std::string("_core: ") + name + what); };
    if (!array.dtype().equal(dtype)) refuse(" has another dtype than expected");
    if (array.ndim() != 2) refuse(" must have two dimensions");
    data = array.data();
    rows = array.shape(0);
    columns = array.shape(1);
    stride = columns;
    transposed = false;
    if (array.size() == 0) return;
    const int64_t element = array.itemsize();
    // A stride counts only where there are several.
    const auto neighbours = [&](int i) { return array.shape(i) < 2 || array.strides(i) == element; };
    const auto apart = [&](int i) {
      return array.shape(i) < 2 ||
             (array.strides(i) >= array.shape(1 - i) * element && array.strides(i) % element == 0);
    };
    if (!(array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_)) refuse(" is not aligned");
    transposed = !(neighbours(1) && apart(0));
    if (transposed && !(neighbours(0) && apart(1))) refuse(" must be a matrix of whole rows or the transpose of one");
    const int along = transposed ? 1 : 0;
    stride = array.shape(along) < 2 ? array.shape(1 - along) : array.strides(along) / element;
  }
};

// out = a b, or out += a b.
void product_of(const py::array& a, const py::object& b, const py::object& out, bool add, int threads) {
  const py::dtype dtype = a.dtype();
  const Matrix left(a, "a", dtype), right(b, "b", dtype), to(out, "out", dtype);
  if (left.columns != right.rows || to.rows != left.rows || to.columns != right.columns) {
    throw py::value_error("_core: shapes of a, b and out do not fit");
  }
  if (to.transposed) throw py::value_error("_core: out must be a matrix of whole rows");
  Product problem;
  problem.dtype = dtype_of(py::str(dtype), kCpuDtypes);
  problem.rows = to.rows;
  problem.columns = to.columns;
  problem.k_size = left.columns;
  problem.a = left.data;
  problem.a_stride = left.stride;
  problem.a_transposed = left.transposed;
  problem.b = right.data;
  problem.b_stride = right.stride;
  problem.b_transposed = right.transposed;
  problem.out = py::reinterpret_borrow<py::array>(out).mutable_data();
  problem.out_stride = to.stride;
  problem.add = add;
  py::gil_scoped_release release;
  product(problem, threads ? threads : num_threads());
}

// The arrays of an optimizer's step, parameter by parameter; a list is empty where there are none of its kind.
std::vector<OptimizerArrays> optimizer_arrays(Dtype dtype, const py::list& params, const py::list& grads,
                                              const py::list& first, const py::list& second) {
  const size_t count = std::max(params.size(), grads.size());
  std::vector<OptimizerArrays> arrays(count);
  for (size_t i = 0; i < count; i++) {
    const auto of = [&](const py::list& list, const char* name, bool written) -> void* {
      if (list.empty()) return nullptr;
      if (list.size() != count) throw py::value_error("_core: lists of different lengths");
      const auto array = py::reinterpret_borrow<py::array>(list[i]);
      constexpr int kLayout = py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
      const py::handle handle = list[i];
      if (!py::isinstance<py::array>(handle) || dtype_of(py::str(array.dtype()), kCpuDtypes) != dtype ||
          (array.flags() & kLayout) != kLayout || (written && !array.writeable())) {
        throw py::value_error(std::string("_core: ") + name + " has another dtype or layout than expected");
      }
      if (arrays[i].n && arrays[i].n != array.size()) throw py::value_error("_core: arrays of different sizes");
      arrays[i].n = array.size();
      return const_cast<void*>(array.data());
    };
    arrays[i].p = of(params, "params", true);
    arrays[i].g = of(grads, "grads", false);
    arrays[i].first = of(first, "first", true);
    arrays[i].second = of(second, "second", true);
  }
  return arrays;
}

void optimize_arrays(const std::string& dtype, const OptimizerStep& step, const py::list& params, const py::list& grads,
                     const py::list& first, const py::list& second) {
  const Dtype of = dtype_of(dtype, kCpuDtypes);
  const auto arrays = optimizer_arrays(of, params, grads, first, second);
  py::gil_scoped_release release;
  optimize(of, step, arrays, num_threads());
}

double sum_of_squares_of(const std::string& dtype, const py::list& grads, double divisor) {
  const Dtype of = dtype_of(dtype, kCpuDtypes);
  const auto arrays = optimizer_arrays(of, py::list(), grads, py::list(), py::list());
  py::gil_scoped_release release;
  return sum_of_squares(of, arrays, divisor, num_threads());
}

// ids of rows of a matrix (V, E), checked: their array, and how many.
std::pair<const int32_t*, int64_t> row_ids(const py::array& ids, const py::array& matrix) {
  constexpr int kLayout = py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  if (ids.dtype().kind() != 'i' || ids.itemsize() != 4 || (ids.flags() & kLayout) != kLayout) {
    throw py::value_error("_core: ids must be C-contiguous int32");
  }
  if (matrix.ndim() != 2 || (matrix.flags() & kLayout) != kLayout) {
    throw py::value_error("_core: the matrix must be C-contiguous, with two dimensions");
  }
  const auto* data = static_cast<const int32_t*>(ids.data());
  for (py::ssize_t i = 0; i < ids.size(); i++) {
    if (data[i] < 0 || data[i] >= matrix.shape(0)) throw py::value_error("_core: ids out of range");
  }
  return {data, ids.size()};
}

void take_rows_of(const py::array& matrix, const py::array& ids, const py::object& out) {
  const auto [data, n] = row_ids(ids, matrix);
  py::array rows = checked(out, "out", matrix.dtype().kind(), matrix.itemsize(), {n, matrix.shape(1)});
  void* to = rows.mutable_data();
  const int64_t row_bytes = matrix.shape(1) * matrix.itemsize();
  py::gil_scoped_release release;
  take_rows(matrix.data(), row_bytes, data, n, to, num_threads());
}

void add_rows_of(py::array matrix, const py::array& ids, const py::object& rows) {
  const Dtype dtype = dtype_of(py::str(matrix.dtype()), kCpuDtypes);
  const auto [data, n] = row_ids(ids, matrix);
  const void* from = checked(rows, "rows", 'f', matrix.itemsize(), {n, matrix.shape(1)}).data();
  void* to = matrix.mutable_data();
  const int64_t columns = matrix.shape(1);
  py::gil_scoped_release release;
  add_rows(dtype, to, columns, data, n, from, num_threads());
}

}  // namespace

void bind_training(py::module_& m) {
  m.def("cross_entropy", &cross_entropy_arrays, "x"_a, "weight"_a, "bias"_a, "targets"_a, "scale"_a, "dx"_a,
        "dweight"_a, "dbias"_a, "memory"_a, "num_threads"_a = 0, "accumulate"_a = true,
        "logit_bytes"_a = size_t(128) << 20);
  m.def("product", &product_of, "a"_a, "b"_a, "out"_a, "add"_a = false, "num_threads"_a = 0);
  py::class_<PyTopSymbols>(m, "TopSymbols")
      .def(py::init<const py::object&, const py::object&, int64_t, const std::shared_ptr<Memory>&, int>(), "weight"_a,
           "bias"_a, "rows"_a, "memory"_a, "num_threads"_a = 0)
      .def("find", &PyTopSymbols::find, "x"_a, "count"_a, "never"_a);

  m.def(
      "multiply",
      [](const std::string& dtype, const py::list& arrays, double factor) {
        OptimizerStep step;
        step.rule = OptimizerRule::multiply;
        step.scale = factor;
        optimize_arrays(dtype, step, arrays, py::list(), py::list(), py::list());
      },
      "dtype"_a, "arrays"_a, "factor"_a);
  m.def(
      "sgd",
      [](const std::string& dtype, const py::list& params, const py::list& grads, const py::list& buffers, double lr,
         double momentum, bool nesterov, double weight_decay, double scale) {
        OptimizerStep step;
        step.lr = lr;
        step.momentum = momentum;
        step.nesterov = nesterov;
        step.weight_decay = weight_decay;
        step.scale = scale;
        optimize_arrays(dtype, step, params, grads, buffers, py::list());
      },
      "dtype"_a, "params"_a, "grads"_a, "buffers"_a, "lr"_a, "momentum"_a, "nesterov"_a, "weight_decay"_a, "scale"_a);
  m.def(
      "adam",
      [](const std::string& dtype, const py::list& params, const py::list& grads, const py::list& first,
         const py::list& second, double lr, double beta_1, double beta_2, double eps, double root, double weight_decay,
         double shrink, double scale) {
        OptimizerStep step;
        step.rule = OptimizerRule::adam;
        step.lr = lr;
        step.beta_1 = beta_1;
        step.beta_2 = beta_2;
        step.eps = eps;
        step.root = root;
        step.weight_decay = weight_decay;
        step.shrink = shrink;
        step.scale = scale;
        optimize_arrays(dtype, step, params, grads, first, second);
      },
      "dtype"_a, "params"_a, "grads"_a, "first"_a, "second"_a, "lr"_a, "beta_1"_a, "beta_2"_a, "eps"_a, "root"_a,
      "weight_decay"_a, "shrink"_a, "scale"_a);
  m.def("take_rows", &take_rows_of, "matrix"_a, "ids"_a, "out"_a);
  m.def("add_rows", &add_rows_of, "matrix"_a, "ids"_a, "rows"_a);
  m.def("sum_of_squares", &sum_of_squares_of, "dtype"_a, "grads"_a, "divisor"_a);
}

}  // namespace fastrnn
