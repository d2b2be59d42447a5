// fastrnn._core: arrays become pointers, the GIL is released, fastrnn.h is called. Shapes are checked again here,
// cheaply, so that no mistake in Python can read out of bounds; messages for users come from Python's own validation.
#include <pybind11/stl.h>

#include <array>
#include <mutex>
#include <stdexcept>
#include <string>

#include "arrays.h"
#include "cpu/isa.h"
#include "cpu/limits.h"
#include "cpu/memory.h"
#include "cpu/threads.h"
#include "fastrnn.h"
#include "problem.h"

namespace py = pybind11;
using namespace py::literals;

namespace fastrnn {

void bind_training(py::module_& m);  // bindings_training.cpp

namespace {

std::vector<Weights> input_weights(const Problem& problem, const py::list& arrays) {
  return weight_list<Weights>(problem, arrays, [&](const py::handle& array, const char* name, Shape shape) {
    return required(input(problem, array, name, shape), name, false);
  });
}

void check_probe(int threads, double seconds) {
  if (threads < 1 || threads > kMaxThreads || !(seconds >= 0 && seconds < 1e6)) {
    throw py::value_error("_core: threads or seconds out of range");
  }
}

// x of a forward pass: an array (T, B, I), or a tuple (address, T, B, packed).
const void* sequence(const Problem& problem, const py::object& x, Batch& batch) {
  if (py::isinstance<py::tuple>(x)) {
    const auto [pointer, T, B, packed] = x.cast<std::tuple<py::int_, int64_t, int64_t, bool>>();
    check_count(T, B);
    batch.seq_len = T;
    batch.batch = B;
    batch.packed = packed;
    return required(address(pointer), "x", T * B == 0);
  }
  if (!py::isinstance<py::array>(x)) throw py::type_error("_core: x must be an array");
  const auto array = py::reinterpret_borrow<py::array>(x);
  if (array.ndim() != 3) throw py::value_error("_core: x must have three dimensions");
  check_count(array.shape(0), array.shape(1));
  batch.seq_len = array.shape(0);
  batch.batch = array.shape(1);
  return input(problem, x, "x", {batch.seq_len, batch.batch, problem.input_size});
}

// x (inputs, I) of a forward pass and, (T, B), which of its rows each step of each sequence reads.
const void* indexed(const Problem& problem, const py::object& x, const py::object& index, Batch& batch) {
  if (!py::isinstance<py::array>(x) || !py::isinstance<py::array>(index)) {
    throw py::type_error("_core: x and index must be arrays");
  }
  const auto rows = py::reinterpret_borrow<py::array>(x), of_steps = py::reinterpret_borrow<py::array>(index);
  if (rows.ndim() != 2 || of_steps.ndim() != 2) throw py::value_error("_core: x and index must have two dimensions");
  batch.seq_len = of_steps.shape(0);
  batch.batch = of_steps.shape(1);
  batch.inputs = rows.shape(0);
  check_count(batch.seq_len, batch.batch);
  check_count(batch.inputs, 1);
  batch.index = static_cast<const int32_t*>(checked(index, "index", 'i', 4, {batch.seq_len, batch.batch}).data());
  for (int64_t i = 0; i < batch.seq_len * batch.batch; i++) {
    if (batch.index[i] < 0 || batch.index[i] >= batch.inputs) throw py::value_error("_core: index out of range");
  }
  return input(problem, x, "x", {batch.inputs, problem.input_size});
}

// 0: the process's setting.
int threads_of(int given) { return given ? given : num_threads(); }

// (y, h_n, c_n, reserve); what is None does not exist.
py::tuple forward_arrays(const Problem& problem, const py::object& x, const py::object& h_0, const py::object& c_0,
                         const py::list& weights, const py::object& lengths, const py::object& resets, double dropout,
                         uint64_t dropout_seed, bool training, const std::shared_ptr<Memory>& memory, int threads,
                         const py::object& out, const py::object& index) {
  Batch batch;
  ForwardArrays arrays;
  arrays.x = index.is_none() ? sequence(problem, x, batch) : indexed(problem, x, index, batch);
  const int64_t T = batch.seq_len, B = batch.batch, LD = problem.num_layers * problem.directions;
  const int64_t P = problem.state_size(), H = problem.hidden_size;
  if (!(dropout >= 0 && dropout <= 1)) throw py::value_error("_core: dropout out of range");
  const bool has_cells = problem.has_cell_state();
  if (!lengths.is_none()) {
    batch.lengths = static_cast<const int64_t*>(checked(lengths, "lengths", 'i', 8, {B}).data());
    for (int64_t b = 0; b < B; b++) {
      if (batch.lengths[b] < 0 || batch.lengths[b] > T ||
          (batch.packed && b && batch.lengths[b] > batch.lengths[b - 1])) {
        throw py::value_error("_core: lengths out of range");
      }
    }
  }
  if (!resets.is_none()) {
    if (problem.directions != 1) throw py::value_error("_core: resets with two directions");
    batch.resets = static_cast<const uint8_t*>(checked(resets, "resets", 'b', 1, {T, B}).data());
  }
  arrays.h_0 = input(problem, h_0, "h_0", {LD, B, P});
  arrays.c_0 = has_cells ? input(problem, c_0, "c_0", {LD, B, H}) : nullptr;
  Results results(problem, out);
  arrays.y = results.add(true, "y", {T, B, problem.directions * P});
  arrays.h_n = results.add(true, "h_n", {LD, B, P});
  arrays.c_n = results.add(has_cells, "c_n", {LD, B, H});
  const auto list = input_weights(problem, weights);
  std::unique_ptr<Reserve> reserve;
  {
    py::gil_scoped_release release;
    reserve = forward(problem, batch, list, arrays, {dropout, dropout_seed}, training, threads_of(threads), memory);
  }
  if (training) results.make_read_only();
  return py::make_tuple(results[0], results[1], results[2], std::move(reserve));
}

// (dx, dh_0, dc_0); what is None does not exist.
py::tuple backward_arrays(const Problem& problem, const Reserve& reserve, const py::object& x, const py::object& y,
                          const py::list& weights, const py::object& dy, const py::object& dh_n, const py::object& dc_n,
                          bool need_dx, const py::list& dweights, const std::shared_ptr<Memory>& memory, int threads,
                          const py::object& out, bool accumulate) {
  const Problem& kept = reserve.problem();
  if (kept.cell != problem.cell || kept.dtype != problem.dtype || kept.input_size != problem.input_size ||
      kept.hidden_size != problem.hidden_size || kept.proj_size != problem.proj_size ||
      kept.num_layers != problem.num_layers || kept.directions != problem.directions || kept.bias != problem.bias) {
    throw py::value_error("_core: the reserve is that of another problem");
  }
  const int64_t T = reserve.seq_len(), B = reserve.batch(), LD = problem.num_layers * problem.directions;
  const int64_t P = problem.state_size(), H = problem.hidden_size;
  const bool has_cells = problem.has_cell_state();
  BackwardArrays arrays;
  arrays.accumulate = accumulate;
  const auto x_data = [&](const auto& get) {
    if (reserve.inputs() < 0) return get({T, B, problem.input_size});
    return get({reserve.inputs(), problem.input_size});
  };
  arrays.x = x_data([&](Shape shape) { return input(problem, x, "x", shape); });
  arrays.y = input(problem, y, "y", {T, B, problem.directions * P});
  arrays.dy = input(problem, dy, "dy", {T, B, problem.directions * P});
  arrays.dh_n = input(problem, dh_n, "dh_n", {LD, B, P});
  arrays.dc_n = has_cells ? input(problem, dc_n, "dc_n", {LD, B, H}) : nullptr;
  Results results(problem, out);
  arrays.dx = x_data([&](Shape shape) { return results.add(need_dx, "dx", shape); });
  arrays.dh_0 = results.add(!results.omits(1), "dh_0", {LD, B, P});
  arrays.dc_0 = results.add(has_cells && !results.omits(2), "dc_0", {LD, B, H});
  required(arrays.x, "x", T * B == 0);
  required(arrays.y, "y", T * B == 0);
  const auto list = input_weights(problem, weights);
  const auto grads = weight_list<WeightGrads>(
      problem, dweights,
      [&](const py::handle& array, const char* name, Shape shape) { return output(problem, array, name, shape); });
  {
    py::gil_scoped_release release;
    backward(reserve, list, arrays, grads, threads_of(threads), memory);
  }
  return py::make_tuple(results[0], results[1], results[2]);
}

// A stream belongs to one thread at a time; the lock turns a mistake into waiting rather than a crash.
class LockedStream {
 public:
  LockedStream(const Problem& problem, const py::list& weights, int64_t batch, int num_threads) {
    if (problem.directions != 1) throw py::value_error("_core: a stream has one direction");
    if (batch < 0 || batch > INT32_MAX) throw py::value_error("_core: batch_size out of range");
    const auto list = input_weights(problem, weights);
    py::gil_scoped_release release;
    stream_ = make_stream(problem, list, batch, num_threads);
  }

  int64_t batch() {
    const Lock lock(*this);
    return stream_->batch();
  }

  void step(const py::object& x, const py::object& out) {
    const Lock lock(*this);
    const Problem& p = stream_->problem();
    const int64_t B = stream_->batch();
    const void* from = required(input(p, x, "x", {B, p.input_size}), "x", B == 0);
    void* to = const_cast<void*>(required<void>(output(p, out, "out", {B, p.state_size()}), "out", B == 0));
    py::gil_scoped_release release;
    stream_->step(from, to);
  }

  void get_state(const py::object& h, const py::object& c) {
    const Lock lock(*this);
    const Problem& p = stream_->problem();
    const int64_t B = stream_->batch();
    void* to_c = nullptr;
    void* to_h = output(p, h, "h", {p.num_layers, B, p.state_size()});
    if (p.has_cell_state()) to_c = output(p, c, "c", {p.num_layers, B, p.hidden_size});
    if (!to_h || (p.has_cell_state() && !to_c)) throw py::value_error("_core: a state is missing");
    stream_->get_state(to_h, to_c);
  }

  void set_state(const py::object& h, const py::object& c) {
    const Lock lock(*this);
    const Problem& p = stream_->problem();
    const int64_t B = stream_->batch();
    const void* from_c = nullptr;
    const void* from_h = input(p, h, "h", {p.num_layers, B, p.state_size()});
    if (p.has_cell_state()) from_c = input(p, c, "c", {p.num_layers, B, p.hidden_size});
    if (!from_h || (p.has_cell_state() && !from_c)) throw py::value_error("_core: a state is missing");
    stream_->set_state(from_h, from_c);
  }

  void reset(const py::object& rows) {
    const Lock lock(*this);
    if (rows.is_none()) return stream_->reset(nullptr, 0);
    const auto [data, n] = checked_rows(rows);
    stream_->reset(data, n);
  }

  void select(const py::object& rows) {
    const Lock lock(*this);
    const auto [data, n] = checked_rows(rows);
    stream_->select(data, n);
  }

 private:
  struct Lock {
    explicit Lock(LockedStream& stream) : lock(stream.own_mutex(), std::try_to_lock) {
      if (lock.owns_lock()) return;
      py::gil_scoped_release release;  // its holder may want the GIL back
      lock.lock();
    }
    std::unique_lock<std::mutex> lock;
  };

  std::pair<const int64_t*, int64_t> checked_rows(const py::object& rows) const {
    const int64_t n = py::isinstance<py::array>(rows) ? py::reinterpret_borrow<py::array>(rows).size() : -1;
    const auto* data = static_cast<const int64_t*>(checked(rows, "rows", 'i', 8, {n}).data());
    for (int64_t i = 0; i < n; i++) {
      if (data[i] < 0 || data[i] >= stream_->batch()) throw py::value_error("_core: rows out of range");
    }
    return {data, n};
  }

  // Renewed after a fork: its holder, if any, stayed behind.
  std::mutex& own_mutex() {
    if (forks_ != fork_count()) {
      new (&mutex_) std::mutex;
      forks_ = fork_count();
    }
    return mutex_;
  }

  std::mutex mutex_;
  unsigned forks_ = fork_count();
  std::unique_ptr<Stream> stream_;
};

// The addresses of OpenMp's functions, in their order; None: threads of our own.
void share_openmp(const py::object& addresses) {
  static OpenMp runtimes[2];  // a team may be reading the other
  static int latest = 0;
  if (addresses.is_none()) return use_openmp(nullptr);
  const auto functions = addresses.cast<std::array<uintptr_t, 5>>();
  OpenMp& runtime = runtimes[latest ^= 1];
  const auto assign = [&](auto& function, int i) {
    if (!functions[size_t(i)]) throw py::value_error("_core: a function of the runtime is missing");
    function = reinterpret_cast<std::decay_t<decltype(function)>>(functions[size_t(i)]);
  };
  assign(runtime.parallel, 0);
  assign(runtime.thread_num, 1);
  assign(runtime.num_threads, 2);
  assign(runtime.max_threads, 3);
  assign(runtime.in_parallel, 4);
  use_openmp(&runtime);
}

std::vector<std::string> names(const std::vector<Isa>& isas) {
  std::vector<std::string> out;
  for (const Isa isa : isas) out.emplace_back(name(isa));
  return out;
}

const char* compiler() {
#if defined(__clang__)
  return "Clang " __clang_version__;
#else
  return "GCC " __VERSION__;
#endif
}

}  // namespace
}  // namespace fastrnn

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
  using namespace fastrnn;
  m.doc() = "Fused recurrent kernels; use fastrnn's layers or fastrnn.functional instead.";

  bind_problem(m, kCpuDtypes);

  py::class_<Memory, std::shared_ptr<Memory>>(m, "Memory").def(py::init<>());

  py::class_<Reserve>(m, "Reserve", py::buffer_protocol())
      .def_property_readonly("nbytes", &Reserve::bytes)
      .def_buffer([](Reserve& reserve) {
        return py::buffer_info(static_cast<uint8_t*>(reserve.data()), py::ssize_t(reserve.bytes()));
      });

  m.def("is_input", &is_input, "problem"_a, "x"_a);
  m.def("gather", &gather, "problem"_a, "mapping"_a, "names"_a);
  m.def("gather_gradients", &gather_gradients, "problem"_a, "gradients"_a, "names"_a, "weights"_a, "parameters"_a);
  m.def("forward", &forward_arrays, "problem"_a, "x"_a, "h_0"_a, "c_0"_a, "weights"_a, "lengths"_a, "resets"_a,
        "dropout"_a, "dropout_seed"_a, "training"_a, "memory"_a, "num_threads"_a = 0, "out"_a = py::none(),
        "index"_a = py::none());
  m.def("backward", &backward_arrays, "problem"_a, "reserve"_a, "x"_a, "y"_a, "weights"_a, "dy"_a, "dh_n"_a, "dc_n"_a,
        "need_dx"_a, "dweights"_a, "memory"_a, "num_threads"_a = 0, "out"_a = py::none(), "accumulate"_a = true);

  bind_training(m);

  py::class_<LockedStream>(m, "Stream")
      .def(py::init<const Problem&, const py::list&, int64_t, int>(), "problem"_a, "weights"_a, "batch_size"_a,
           "num_threads"_a)
      .def("step", &LockedStream::step, "x"_a, "out"_a)
      .def("get_state", &LockedStream::get_state, "h"_a, "c"_a)
      .def("set_state", &LockedStream::set_state, "h"_a, "c"_a)
      .def("reset", &LockedStream::reset, "rows"_a)
      .def("select", &LockedStream::select, "rows"_a)
      .def_property_readonly("batch_size", &LockedStream::batch);

  m.def("set_num_threads", &set_num_threads, "n"_a);
  m.def("get_num_threads", &num_threads);
  m.def("use_openmp", &share_openmp, "functions"_a);
  m.def("release_memory", &release_memory);
  m.def("cached_bytes", &cached_bytes);
  m.def(
      "peak_flops",
      [](const std::string& dtype, int threads, double seconds) {
        const Dtype of = dtype_of(dtype, kCpuDtypes);
        check_probe(threads, seconds);
        py::gil_scoped_release release;
        return peak_flops(of, threads, seconds);
      },
      "dtype"_a, "threads"_a, "seconds"_a);
  m.def(
      "read_bandwidth",
      [](int64_t bytes_per_thread, int threads, double seconds) {
        check_probe(threads, seconds);
        if (bytes_per_thread < 1 || bytes_per_thread > int64_t(1) << 34) {
          throw py::value_error("_core: bytes_per_thread out of range");
        }
        py::gil_scoped_release release;
        return read_bandwidth(bytes_per_thread, threads, seconds);
      },
      "bytes_per_thread"_a, "threads"_a, "seconds"_a);
  m.def(
      "round_trip",
      [](double seconds) {
        check_probe(2, seconds);
        py::gil_scoped_release release;
        return round_trip(seconds);
      },
      "seconds"_a);
  m.def("set_isa", [](const std::string& isa) { set_current(isa); }, "isa"_a);
  m.def("config", [] {
    return py::dict("isa"_a = name(current()), "isa_compiled"_a = names(compiled()),
                    "isa_available"_a = names(available()), "compiler"_a = compiler(), "threads"_a = num_threads(),
                    "default_threads"_a = default_num_threads());
  });
}
