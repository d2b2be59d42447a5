// The weights of a stack in the order in which every extension takes them.
#pragma once

#include <initializer_list>

#include "fastrnn.h"

namespace fastrnn {

using Shape = std::initializer_list<int64_t>;

inline size_t weight_count(const Problem& problem) {
  return size_t(problem.num_layers * problem.directions) * (2 + (problem.bias ? 2 : 0) + (problem.proj_size ? 1 : 0));
}

// Entries of all layers and directions, each made of take(name, shape), which is called in the order of the arrays.
template <class Entry, class Take>
std::vector<Entry> weight_entries(const Problem& problem, Take&& take) {
  const int64_t rows = problem.gates() * problem.hidden_size, state = problem.state_size();
  std::vector<Entry> list(size_t(problem.num_layers * problem.directions));
  for (size_t i = 0; i < list.size(); i++) {
    Entry& e = list[i];
    e.w_ih = take("w_ih", {rows, problem.layer_input_size(int64_t(i) / problem.directions)});
    e.w_hh = take("w_hh", {rows, state});
    if (problem.bias) {
      e.b_ih = take("b_ih", {rows});
      e.b_hh = take("b_hh", {rows});
    }
    if (problem.proj_size) e.w_hr = take("w_hr", {problem.proj_size, problem.hidden_size});
  }
  return list;
}

}  // namespace fastrnn
