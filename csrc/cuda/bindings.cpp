// fastrnn._cuda: addresses in device memory become pointers and fastrnn_cuda.h is called. Python has checked devices,
// dtypes, shapes and layouts, and keeps everything alive until the stream is done.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <iterator>

#include "cuda/fastrnn_cuda.h"
#include "problem.h"
#include "weights.h"

namespace fastrnn {
namespace cuda {
namespace {

// None, or an address.
void* address(const py::handle& object) {
  if (object.is_none()) return nullptr;
  void* pointer = PyLong_AsVoidPtr(object.ptr());
  if (!pointer && PyErr_Occurred()) throw py::error_already_set();
  return pointer;
}

template <class Entry>
std::vector<Entry> entries(const Problem& problem, const py::list& addresses) {
  if (addresses.size() != weight_count(problem)) throw py::value_error("_cuda: wrong number of weight arrays");
  size_t next = 0;
  return weight_entries<Entry>(problem, [&](const char*, Shape) { return address(addresses[next++]); });
}

struct Options {
  py::object lengths, resets;
  double dropout;
  uint64_t dropout_seed;
  bool tf32;
};

Call make_call(const Problem& problem, int64_t seq_len, int64_t batch, const Options& options,
               const py::object& reserve, const py::object& workspace, uintptr_t stream) {
  check_count(seq_len, batch);
  if (!(options.dropout >= 0 && options.dropout <= 1)) throw py::value_error("_cuda: dropout out of range");
  Call call;
  call.problem = problem;
  call.batch.seq_len = seq_len;
  call.batch.batch = batch;
  call.batch.lengths = static_cast<const int64_t*>(address(options.lengths));
  call.batch.resets = static_cast<const uint8_t*>(address(options.resets));
  if (call.batch.resets && problem.directions != 1) throw py::value_error("_cuda: resets with two directions");
  call.dropout = {options.dropout, options.dropout_seed};
  call.tf32 = options.tf32;
  call.reserve = address(reserve);
  call.workspace = address(workspace);
  call.stream = reinterpret_cast<Stream>(stream);
  return call;
}

}  // namespace
}  // namespace cuda
}  // namespace fastrnn

#ifndef FASTRNN_CUDA_MODULE
#define FASTRNN_CUDA_MODULE _cuda
#endif

PYBIND11_MODULE(FASTRNN_CUDA_MODULE, m, pybind11::mod_gil_not_used()) {
  using namespace fastrnn;
  using namespace fastrnn::cuda;
  using namespace py::literals;
  m.doc() = "Fused recurrent kernels for GPUs; use fastrnn's layers instead.";
  bind_problem(m, int(std::size(kDtypeNames)));
  m.attr("build") = FASTRNN_CUDA_BUILD;

  py::class_<Options>(m, "Options")
      .def(py::init([](py::object lengths, py::object resets, double dropout, uint64_t dropout_seed, bool tf32) {
             return Options{std::move(lengths), std::move(resets), dropout, dropout_seed, tf32};
           }),
           "lengths"_a, "resets"_a, "dropout"_a, "dropout_seed"_a, "tf32"_a);

  // Bytes: reserve, workspace of forward, workspace of backward.
  m.def(
      "sizes",
      [](const Problem& problem, int64_t seq_len, int64_t batch, double dropout, bool training) {
        check_count(seq_len, batch);
        Batch b;
        b.seq_len = seq_len;
        b.batch = batch;
        const Sizes s = sizes(problem, b, dropout > 0, training);
        return py::make_tuple(s.reserve, s.forward_workspace, s.backward_workspace);
      },
      "problem"_a, "seq_len"_a, "batch"_a, "dropout"_a, "training"_a);

  // Bytes per row of a step and per sequence.
  m.def(
      "reserve_parts",
      [](const Problem& problem) {
        py::list parts;
        for (const ReservePart& part : reserve_parts(problem)) {
          parts.append(py::make_tuple(part.per_row, part.per_sequence));
        }
        return parts;
      },
      "problem"_a);

  // Of forward and of backward, on the current device.
  m.def(
      "paths",
      [](const Problem& problem, int64_t seq_len, int64_t batch, bool tf32) {
        check_count(seq_len, batch);
        Batch b;
        b.seq_len = seq_len;
        b.batch = batch;
        const auto name = [](Path path) { return path == Path::one_sm ? "one_sm" : "general"; };
        const Paths found = paths(problem, b, tf32);
        return py::make_tuple(name(found.forward), name(found.backward));
      },
      "problem"_a, "seq_len"_a, "batch"_a, "tf32"_a);

  m.def("graph_launches", &graph_launches);
  m.def("release_graphs", &release_graphs);

  m.def("load_cublaslt", &load_cublaslt, "name"_a, "resident"_a, "least_work"_a = kLeastBlasWork);
  m.def("unload_cublaslt", &unload_cublaslt);
  m.def("cublaslt_products", &cublaslt_products);

  // out: y, h_n, c_n.
  m.def(
      "forward",
      [](const Problem& problem, int64_t seq_len, int64_t batch, const py::object& x, const py::object& h_0,
         const py::object& c_0, const py::list& weights, const Options& options, const py::tuple& out,
         const py::object& reserve, const py::object& workspace, uintptr_t stream) {
        const Call call = make_call(problem, seq_len, batch, options, reserve, workspace, stream);
        ForwardArrays arrays;
        arrays.x = address(x);
        arrays.h_0 = address(h_0);
        arrays.c_0 = address(c_0);
        arrays.y = address(out[0]);
        arrays.h_n = address(out[1]);
        arrays.c_n = address(out[2]);
        const auto list = entries<Weights>(problem, weights);
        py::gil_scoped_release release;
        forward(call, list, arrays);
      },
      "problem"_a, "seq_len"_a, "batch"_a, "x"_a, "h_0"_a, "c_0"_a, "weights"_a, "options"_a, "out"_a, "reserve"_a,
      "workspace"_a, "stream"_a);

  // out: dx, dh_0, dc_0.
  m.def(
      "backward",
      [](const Problem& problem, int64_t seq_len, int64_t batch, const py::object& x, const py::object& y,
         const py::list& weights, const Options& options, const py::object& dy, const py::object& dh_n,
         const py::object& dc_n, const py::tuple& out, const py::list& dweights, const py::object& reserve,
         const py::object& workspace, uintptr_t stream, bool accumulate) {
        const Call call = make_call(problem, seq_len, batch, options, reserve, workspace, stream);
        BackwardArrays arrays;
        arrays.x = address(x);
        arrays.y = address(y);
        arrays.dy = address(dy);
        arrays.dh_n = address(dh_n);
        arrays.dc_n = address(dc_n);
        arrays.dx = address(out[0]);
        arrays.dh_0 = address(out[1]);
        arrays.dc_0 = address(out[2]);
        arrays.accumulate = accumulate;
        const auto list = entries<Weights>(problem, weights);
        const auto grads = entries<WeightGrads>(problem, dweights);
        py::gil_scoped_release release;
        backward(call, list, arrays, grads);
      },
      "problem"_a, "seq_len"_a, "batch"_a, "x"_a, "y"_a, "weights"_a, "options"_a, "dy"_a, "dh_n"_a, "dc_n"_a, "out"_a,
      "dweights"_a, "reserve"_a, "workspace"_a, "stream"_a, "accumulate"_a = true);
}
