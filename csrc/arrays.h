// Arrays as the kernels take them: pointers to C-contiguous numbers of one dtype, in shapes that were checked. Besides
// NumPy's arrays an int does, the address of such numbers, for whose type, layout and shape the caller vouches.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <string>
#include <vector>

#include "fastrnn.h"
#include "weights.h"

namespace fastrnn {

namespace py = pybind11;

// Whether it is C-contiguous and of exactly this dtype and shape.
inline bool fits(const py::array& array, char kind, int64_t item_size, Shape shape) {
  constexpr int kLayout = py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  const py::dtype dtype = array.dtype();
  if (dtype.kind() != kind || dtype.itemsize() != item_size || dtype.byteorder() == '>' ||
      (array.flags() & kLayout) != kLayout || array.ndim() != py::ssize_t(shape.size())) {
    return false;
  }
  py::ssize_t i = 0;
  for (const int64_t n : shape) {
    if (array.shape(i++) != n) return false;
  }
  return true;
}

inline py::array checked(const py::handle& object, const char* name, char kind, int64_t item_size, Shape shape) {
  if (!py::isinstance<py::array>(object)) throw py::type_error(std::string("_core: ") + name + " must be an array");
  auto array = py::reinterpret_borrow<py::array>(object);
  if (!fits(array, kind, item_size, shape)) {
    throw py::value_error(std::string("_core: ") + name + " has another dtype, layout or shape than expected");
  }
  return array;
}

inline bool is_address(const py::handle& object) { return PyLong_Check(object.ptr()); }

inline void* address(const py::handle& object) {
  void* pointer = PyLong_AsVoidPtr(object.ptr());
  if (!pointer && PyErr_Occurred()) throw py::error_already_set();
  return pointer;
}

inline const void* input(const Problem& problem, const py::handle& object, const char* name, Shape shape) {
  if (object.is_none()) return nullptr;
  if (is_address(object)) return address(object);
  return checked(object, name, 'f', int64_t(problem.element_size()), shape).data();
}

inline void* output(const Problem& problem, const py::handle& object, const char* name, Shape shape) {
  if (object.is_none()) return nullptr;
  if (is_address(object)) return address(object);
  const py::array array = checked(object, name, 'f', int64_t(problem.element_size()), shape);
  if (!array.writeable()) throw py::value_error(std::string("_core: ") + name + " must be writeable");
  return const_cast<void*>(array.data());
}

template <class T>
const T* required(const T* pointer, const char* name, bool empty) {
  if (!pointer && !empty) throw py::value_error(std::string("_core: ") + name + " is missing");
  return pointer;
}

// A result: the caller's array, or without one a new one. None where there is none.
class Results {
 public:
  Results(const Problem& problem, const py::object& out) : problem_(problem) {
    if (out.is_none()) return;
    out_ = out.cast<py::tuple>();
    if (out_.size() != 3) throw py::value_error("_core: out must hold three arrays");
  }
  // Whether out says None for result i.
  bool omits(size_t i) const { return out_ && out_[i].is_none(); }
  void* add(bool wanted, const char* name, Shape shape) {
    const size_t i = next_++;
    if (!wanted) return nullptr;
    if (out_) {
      arrays_[i] = out_[i];
    } else {
      arrays_[i] = new_array(shape);
      return const_cast<void*>(py::reinterpret_borrow<py::array>(arrays_[i]).data());
    }
    void* data = output(problem_, arrays_[i], name, shape);
    bool empty = false;
    for (const int64_t n : shape) empty |= n == 0;
    return const_cast<void*>(required<void>(data, name, empty));
  }
  // Those that were made here: the caller's stay as they are.
  void make_read_only() const {
    for (const py::object& array : arrays_) {
      if (!out_ && !array.is_none()) {
        py::detail::array_proxy(array.ptr())->flags &= ~py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
      }
    }
  }
  const py::object& operator[](size_t i) const { return arrays_[i]; }

 private:
  // What py::array does in more steps.
  py::object new_array(Shape shape) const {
    const auto& numpy = py::detail::npy_api::get();
    const py::dtype dtype = problem_.dtype == Dtype::float32 ? py::dtype::of<float>() : py::dtype::of<double>();
    PyObject* array =
        numpy.PyArray_NewFromDescr_(numpy.PyArray_Type_, dtype.inc_ref().ptr(), int(shape.size()),
                                    reinterpret_cast<const Py_intptr_t*>(shape.begin()), nullptr, nullptr, 0, nullptr);
    if (!array) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(array);
  }

  const Problem& problem_;
  py::tuple out_ = py::reinterpret_steal<py::tuple>(nullptr);
  py::object arrays_[3] = {py::none(), py::none(), py::none()};
  size_t next_ = 0;
};

// weight_entries of a list of arrays, for a call that must not go on with anything else; get turns one into a pointer,
// null where it is None.
template <class Entry, class Get>
std::vector<Entry> weight_list(const Problem& problem, const py::list& arrays, Get&& get) {
  if (arrays.size() != weight_count(problem)) throw py::value_error("_core: wrong number of weight arrays");
  size_t next = 0;
  return weight_entries<Entry>(problem,
                               [&](const char* name, Shape shape) { return get(arrays[next++], name, shape); });
}

inline bool is_plain_array(const py::handle& object) {
  return Py_TYPE(object.ptr()) == py::detail::npy_api::get().PyArray_Type_;
}

// Whether x is (T, B, I) as the kernels read it. Else the caller finds out what it is.
inline bool is_input(const Problem& problem, const py::handle& x) {
  if (!is_plain_array(x)) return false;
  const auto array = py::reinterpret_borrow<py::array>(x);
  if (array.ndim() != 3) return false;
  return fits(array, 'f', int64_t(problem.element_size()), {array.shape(0), array.shape(1), problem.input_size});
}

// The arrays of a dict in the order of `names`; None where it holds anything else than exactly the arrays that the
// kernels can read. Then the caller finds out what is wrong.
inline py::object gather(const Problem& problem, const py::dict& mapping, const py::tuple& names) {
  struct Entry {
    bool w_ih, w_hh, b_ih, b_hh, w_hr;
  };
  const size_t count = weight_count(problem);
  if (mapping.size() != count || names.size() != count) return py::none();
  py::list arrays(count);
  size_t next = 0;
  bool good = true;
  weight_entries<Entry>(problem, [&](const char*, Shape shape) {
    if (!good) return false;
    const auto array = py::reinterpret_steal<py::object>(PyObject_GetItem(mapping.ptr(), names[next].ptr()));
    if (!array && !PyErr_ExceptionMatches(PyExc_KeyError)) throw py::error_already_set();
    if (!array) PyErr_Clear();
    good = array && is_plain_array(array) &&
           fits(py::reinterpret_borrow<py::array>(array), 'f', int64_t(problem.element_size()), shape);
    arrays[next++] = array;
    return good;
  });
  return good ? py::object(arrays) : py::none();
}

// `gradients` gathered, if each is writeable and shares no memory with another, with one of `weights` or with a value
// of `parameters`, as far as that can be told quickly; else None.
inline py::object gather_gradients(const Problem& problem, const py::dict& gradients, const py::tuple& names,
                                   const py::list& weights, const py::dict& parameters) {
  struct Span {
    uintptr_t begin, end;
    bool gradient;
  };
  const py::object found = gather(problem, gradients, names);
  if (found.is_none()) return found;
  std::vector<Span> spans;
  spans.reserve(gradients.size() + weights.size() + parameters.size());
  const auto add = [&](const py::handle& object, bool gradient) {
    if (!is_plain_array(object)) return false;
    const auto array = py::reinterpret_borrow<py::array>(object);
    if (!(array.flags() & py::array::c_style) || (gradient && !array.writeable())) return false;
    const auto begin = reinterpret_cast<uintptr_t>(array.data());
    spans.push_back({begin, begin + size_t(array.nbytes()), gradient});
    return true;
  };
  for (const py::handle array : py::reinterpret_borrow<py::list>(found)) {
    if (!add(array, true)) return py::none();
  }
  for (const py::handle array : weights) {
    if (!add(array, false)) return py::none();
  }
  for (const auto& item : parameters) {
    if (!add(item.second, false)) return py::none();
  }
  std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) { return a.begin < b.begin; });
  uintptr_t gradient_end = 0, end = 0;
  for (const Span& span : spans) {
    if (span.begin < (span.gradient ? end : gradient_end)) return py::none();
    end = std::max(end, span.end);
    if (span.gradient) gradient_end = std::max(gradient_end, span.end);
  }
  return found;
}

}  // namespace fastrnn
