// Sums over gradients and the steps of optimizers: loops over whole arrays, bound by memory. Each number is read and
// written once.
#pragma once

#include "cpu/kernels.h"
#include "cpu/simd.h"
#include "cpu/threads.h"

namespace fastrnn {
namespace FASTRNN_ISA {

// Sum of (x / divisor)^2 in double. The order of the sum depends on n alone.
template <class T>
double sum_of_squares(const void* data, int64_t n, double divisor) {
  constexpr int kLanes = 32;
  const T* x = static_cast<const T*>(data);
  double sums[kLanes] = {};
  const auto add = [&](auto&& value) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      for (int lane = 0; lane < kLanes; lane++) {
        const double d = value(x[i + lane]);
        sums[lane] += d * d;
      }
    }
    for (int lane = 0; i < n; i++, lane++) {
      const double d = value(x[i]);
      sums[lane] += d * d;
    }
  };
  if (divisor == 1) {
    add([](T value) { return double(value); });
  } else {
    add([divisor](T value) { return double(value) / divisor; });
  }
  double sum = 0;
  for (const double each : sums) sum += each;
  return sum;
}

template <class T>
void multiply(T* x, T factor, int64_t n) {
  for (int64_t i = 0; i < n; i++) x[i] *= factor;
}

// d = scale g + weight_decay p;  with momentum v = momentum v + d and d = v, or nesterov d + momentum v;  p -= lr d
template <class T>
void sgd(const OptimizerArgs& a, T* __restrict p, const T* __restrict g, T* __restrict v, int64_t n) {
  const T scale = T(a.scale), decay = T(a.weight_decay), momentum = T(a.momentum), lr = T(a.lr);
  if (!v) {
    for (int64_t i = 0; i < n; i++) p[i] -= lr * (scale * g[i] + decay * p[i]);
    return;
  }
  const T ahead = a.nesterov ? T(1) : T(0), behind = a.nesterov ? momentum : T(1);
  for (int64_t i = 0; i < n; i++) {
    const T d = scale * g[i] + decay * p[i];
    v[i] = momentum * v[i] + d;
    p[i] -= lr * (ahead * d + behind * v[i]);
  }
}

// p *= shrink;  d = scale g + weight_decay p;  m = b1 m + (1 - b1) d;  v = b2 v + (1 - b2) d^2;
// p -= lr m / (sqrt(v) / root + eps)
template <class T>
void adam(const OptimizerArgs& a, T* __restrict p, const T* __restrict g, T* __restrict m, T* __restrict v, int64_t n) {
  const T scale = T(a.scale), decay = T(a.weight_decay), shrink = T(a.shrink), lr = T(a.lr), eps = T(a.eps);
  const T b1 = T(a.beta_1), b2 = T(a.beta_2), new_1 = T(1 - a.beta_1), new_2 = T(1 - a.beta_2), root = T(a.root);
  for (int64_t i = 0; i < n; i++) {
    const T before = p[i] * shrink, d = scale * g[i] + decay * before;
    m[i] = b1 * m[i] + new_1 * d;
    v[i] = b2 * v[i] + new_2 * d * d;
    p[i] = before - lr * m[i] / (__builtin_sqrt(v[i]) / root + eps);
  }
}

template <class T>
void optimize(const OptimizerArgs& a, Team& team, int tid) {
  for (int64_t i = 0; i < a.count; i++) {
    const OptimizerArrays& of = a.arrays[i];
    const int64_t begin = share_begin(of.n, tid, team.size()), n = share_begin(of.n, tid + 1, team.size()) - begin;
    const auto part = [&](void* array) { return array ? static_cast<T*>(array) + begin : nullptr; };
    const T* g = of.g ? static_cast<const T*>(of.g) + begin : nullptr;
    switch (a.rule) {
      case OptimizerRule::multiply:
        multiply(part(of.p), T(a.scale), n);
        break;
      case OptimizerRule::sgd:
        sgd(a, part(of.p), g, part(of.first), n);
        break;
      case OptimizerRule::adam:
        adam(a, part(of.p), g, part(of.first), part(of.second), n);
        break;
    }
  }
}

}  // namespace FASTRNN_ISA
}  // namespace fastrnn
