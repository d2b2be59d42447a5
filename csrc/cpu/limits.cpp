#include "cpu/limits.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <vector>

#include "cpu/memory.h"
#include "cpu/plan.h"
#include "cpu/threads.h"

namespace fastrnn {

namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Sums over the threads what each does per second: work(tid) is repeated and returns its amount.
template <class Work>
double rate(int threads, double seconds, const Work& work) {
  std::vector<double> rates(static_cast<size_t>(threads));
  on_team(threads, [&](Team& team, int tid) {
    work(tid);
    team.barrier(tid);
    const auto start = Clock::now();
    double amount = 0;
    do {
      amount += double(work(tid));
    } while (since(start) < seconds);
    rates[size_t(tid)] = amount / since(start);
  });
  double sum = 0;
  for (const double r : rates) sum += r;
  return sum;
}

struct alignas(64) Sink {
  char data[64];
};

}  // namespace

double peak_flops(Dtype dtype, int threads, double seconds) {
  constexpr int64_t kRounds = 2000;
  const Kernels& kernels = kernels_in_use(dtype);
  std::vector<Sink> sinks(static_cast<size_t>(threads));
  return rate(threads, seconds, [&](int tid) { return kernels.fma_chains(kRounds, &sinks[size_t(tid)]); });
}

double read_bandwidth(int64_t bytes_per_thread, int threads, double seconds) {
  constexpr int64_t kUnit = 512;
  const Kernels& kernels = kernels_in_use(Dtype::float32);
  const int64_t bytes = (bytes_per_thread + kUnit - 1) / kUnit * kUnit;
  const Buffer buffer = acquire(size_t(bytes) * size_t(threads), nullptr);
  std::memset(buffer.data(), 0, size_t(bytes) * size_t(threads));
  std::vector<Sink> sinks(static_cast<size_t>(threads));
  return rate(threads, seconds, [&](int tid) {
    kernels.read_once(static_cast<const char*>(buffer.data()) + bytes * tid, bytes, &sinks[size_t(tid)]);
    return bytes;
  });
}

double round_trip(double seconds) {
  constexpr int kTrips = 100, kStop = -1;
  constexpr size_t kMostTimes = 10000;
  alignas(64) std::atomic<int> turn{0};
  std::vector<double> times;
  times.reserve(kMostTimes);
  on_team(2, [&](Team& team, int tid) {
    team.barrier(tid);
    if (tid == 1) {
      for (int seen = 0; seen != kStop; seen = turn.load(std::memory_order_acquire)) {
        if (seen > 0 && seen % 2 == 1) turn.store(seen + 1, std::memory_order_release);
      }
      return;
    }
    const auto start = Clock::now();
    int next = 1;
    while (times.empty() || (since(start) < seconds && times.size() < kMostTimes)) {
      const auto first = Clock::now();
      int trips = 0;
      // Where two threads share a core a trip takes as long as the scheduler pleases: a batch may end early.
      while (trips < kTrips && (trips == 0 || trips % 10 != 0 || since(first) < seconds)) {
        turn.store(next, std::memory_order_release);
        while (turn.load(std::memory_order_acquire) != next + 1) {
        }
        trips++;
        next += 2;
      }
      times.push_back(since(first) / trips);
    }
    turn.store(kStop, std::memory_order_release);
  });
  std::nth_element(times.begin(), times.begin() + std::ptrdiff_t(times.size() / 2), times.end());
  return times[times.size() / 2];
}

}  // namespace fastrnn
