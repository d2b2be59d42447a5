// Stands in for csrc/cuda/device.h: the kernels as plain C++, every CUDA thread a fiber on one CPU thread.
//
// Blocks run one after the other, in a random order, as is the order of the threads between two meetings.
// Shared memory begins as NaN in a block of exactly the size asked for, asynchronous copies arrive as late as they may,
// and a thread that waits for others which never come ends the process. Races of memory order are not found.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define FASTRNN_DEVICE inline

using cudaStream_t = void*;
struct dim3 {
  unsigned x, y, z;
  explicit dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace fastrnn {
namespace emulation {

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
};

enum class Waiting { nothing, warp, block };

struct Fiber {
  static constexpr size_t kStack = 256 << 10;
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  void* fake_stack = nullptr;
  dim3 thread;
  Waiting waiting = Waiting::nothing;
  bool done = false;
  std::vector<std::vector<Copy>> groups{{}};  // of copies under way; the last one is open
  uint32_t a[4], b[2];                        // what this lane gives to a product of its warp
  const void* row = nullptr;                  // what it names of a matrix
};

// Drawn from FASTRNN_EMULATION_SEED, anew whenever that changes.
inline std::mt19937& random_order() {
  static std::mt19937 random;
  static std::string seeded;
  const char* seed = std::getenv("FASTRNN_EMULATION_SEED");
  if (seed && seeded != seed) random.seed(unsigned(std::atoi((seeded = seed).c_str())));
  return random;
}

class Block {
 public:
  static Block*& current() {
    static Block* block = nullptr;
    return block;
  }

  Block(dim3 index, unsigned threads, size_t shared, std::mt19937& random, const std::function<void()>& kernel)
      : index(index), threads(threads), kernel_(kernel), random_(random), shared_(new char[shared]) {
    std::memset(shared_.get(), 0xff, shared);
    if (fibers().size() < threads) fibers().resize(threads);
  }

  void run() {
    current() = this;
    for (unsigned i = 0; i < threads; i++) {
      Fiber& fiber = fibers()[i];
      fiber.thread = dim3(i, 0, 0);
      fiber.done = false;
      fiber.waiting = Waiting::nothing;
      fiber.groups.assign(1, {});
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = Fiber::kStack;
      fiber.context.uc_link = nullptr;
      makecontext(&fiber.context, &Block::enter, 0);
    }
    std::vector<unsigned> ready(threads);
    for (unsigned i = 0; i < threads; i++) ready[i] = i;
    while (!ready.empty()) {
      std::shuffle(ready.begin(), ready.end(), random_);
      for (const unsigned i : ready) resume(fibers()[i]);
      ready.clear();
      bool unfinished = false;
      for (unsigned first = 0; first < threads; first += 32) {
        release(first, std::min(first + 32, threads), Waiting::warp, ready);
      }
      if (ready.empty()) release(0, threads, Waiting::block, ready);
      for (unsigned i = 0; i < threads; i++) unfinished |= !fibers()[i].done;
      if (ready.empty() && unfinished) {
        std::fprintf(stderr, "emulation: threads of a block wait for others that never come\n");
        std::abort();
      }
    }
    current() = nullptr;
  }

  void wait(Waiting waiting) {
    Fiber& fiber = *running;
    fiber.waiting = waiting;
    leave(fiber, false);
  }

  Fiber& lane(unsigned lane) { return fibers()[running->thread.x / 32 * 32 + lane]; }
  char* shared() { return shared_.get(); }

  const dim3 index;
  const unsigned threads;
  Fiber* running = nullptr;

 private:
  static std::vector<Fiber>& fibers() {
    static std::vector<Fiber> all;
    return all;
  }

  // All that are not done wait for the same: they go on.
  static void release(unsigned first, unsigned end, Waiting kind, std::vector<unsigned>& ready) {
    const size_t before = ready.size();
    for (unsigned i = first; i < end; i++) {
      if (fibers()[i].done) continue;
      if (fibers()[i].waiting != kind) return ready.resize(before);
      ready.push_back(i);
    }
    for (size_t i = before; i < ready.size(); i++) fibers()[ready[i]].waiting = Waiting::nothing;
  }

  void resume(Fiber& fiber) {
    running = &fiber;
#if defined(__SANITIZE_ADDRESS__)
    void* own = nullptr;
    __sanitizer_start_switch_fiber(&own, fiber.stack.get(), Fiber::kStack);
#endif
    swapcontext(&scheduler_, &fiber.context);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(own, nullptr, nullptr);
#endif
    running = nullptr;
  }

  void leave(Fiber& fiber, [[maybe_unused]] bool forever) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(forever ? nullptr : &fiber.fake_stack, scheduler_stack_, scheduler_size_);
#endif
    swapcontext(&fiber.context, &scheduler_);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fiber.fake_stack, &scheduler_stack_, &scheduler_size_);
#endif
  }

  static void enter() {
    Block& block = *current();
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &block.scheduler_stack_, &block.scheduler_size_);
#endif
    block.kernel_();
    block.running->done = true;
    block.leave(*block.running, true);
  }

  const std::function<void()>& kernel_;
  std::mt19937& random_;
  std::unique_ptr<char[]> shared_;
  ucontext_t scheduler_;
  [[maybe_unused]] const void* scheduler_stack_ = nullptr;
  [[maybe_unused]] size_t scheduler_size_ = 0;
};

// Finishes groups until at most `keep` are under way. The open one is not among them.
inline void arrive(size_t keep) {
  auto& groups = Block::current()->running->groups;
  while (groups.size() > keep + 1) {
    for (const Copy& copy : groups.front()) std::memcpy(copy.to, copy.from, copy.bytes);
    groups.erase(groups.begin());
  }
}

// d (16 x 8) += a (16 x k) b (k x 8), a and b spread over the warp's lanes in words of `per` numbers.
template <class Number>
void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int per, Number&& number) {
  Block& block = *Block::current();
  Fiber& self = *block.running;
  std::memcpy(self.a, a, sizeof a);
  std::memcpy(self.b, b, sizeof b);
  block.wait(Waiting::warp);
  const int lane = int(self.thread.x % 32), g = lane / 4, t = lane % 4;
  for (int i = 0; i < 4; i++) {
    const int row = g + i / 2 * 8, column = 2 * t + i % 2;
    float sum = d[i];
    for (int k = 0; k < 8 * per; k++) {
      const int quad = k / per % 4, half = k / (4 * per);
      sum += number(block.lane(unsigned(row % 8 * 4 + quad)).a[row / 8 + 2 * half], k % per) *
             number(block.lane(unsigned(column * 4 + quad)).b[half], k % per);
    }
    d[i] = sum;
  }
  block.wait(Waiting::warp);
}

}  // namespace emulation

namespace cuda {

struct Limits {
  int generation, processors;
  size_t shared;
};
// Those of an H100, but for the shared memory that FASTRNN_EMULATION_SHARED gives a block.
inline Limits current_limits() {
  const char* shared = std::getenv("FASTRNN_EMULATION_SHARED");
  return {90, 132, shared ? size_t(std::atoll(shared)) : 227 * 1024};
}

inline int current_device() { return 0; }

inline bool is_capturing(cudaStream_t) { return std::getenv("FASTRNN_EMULATION_CAPTURING"); }

class Graph {
 public:
  template <class Enqueue>
  explicit Graph(Enqueue&& enqueue) {
    fail_if_asked("making");
    recording() = this;
    enqueue(nullptr);
    recording() = nullptr;
  }
  void launch(cudaStream_t) const {
    fail_if_asked("launching");
    for (const auto& launch : launches) launch();
  }
  // What is being made.
  static Graph*& recording() {
    static thread_local Graph* graph = nullptr;
    return graph;
  }
  std::vector<std::function<void()>> launches;

 private:
  // FASTRNN_EMULATION_GRAPHS_FAIL: "making" or "launching".
  static void fail_if_asked(const char* what) {
    const char* asked = std::getenv("FASTRNN_EMULATION_GRAPHS_FAIL");
    if (asked && std::strcmp(asked, what) == 0) throw std::runtime_error("CUDA: out of memory");
  }
};

template <class Parameters>
void launch(void (*kernel)(Parameters), dim3 grid, unsigned threads, size_t shared, cudaStream_t stream,
            Parameters parameters) {
  if (Graph* graph = Graph::recording()) {
    graph->launches.push_back([=] { launch(kernel, grid, threads, shared, stream, parameters); });
    return;
  }
  if (shared > current_limits().shared) {
    std::fprintf(stderr, "emulation: a block asks for %zu bytes of shared memory\n", shared);
    std::abort();
  }
  std::mt19937& random = emulation::random_order();
  std::vector<unsigned> order(grid.x);
  for (unsigned i = 0; i < grid.x; i++) order[i] = i;
  std::shuffle(order.begin(), order.end(), random);
  const std::function<void()> body = [&] { kernel(parameters); };
  for (const unsigned i : order) emulation::Block(dim3(i, 0, 0), threads, shared, random, body).run();
}

template <class Call>
int call_library(Call&& call) {
  if (Graph* graph = Graph::recording()) {
    graph->launches.push_back([=] { call(); });
    return 0;
  }
  return call();
}

inline char* shared_memory() { return emulation::Block::current()->shared(); }

template <int kBytes>
void copy_async(void* to, const void* from) {
  if (reinterpret_cast<uintptr_t>(to) % kBytes || reinterpret_cast<uintptr_t>(from) % kBytes) {
    std::fprintf(stderr, "emulation: an asynchronous copy of %d bytes is not aligned\n", kBytes);
    std::abort();
  }
  emulation::Block::current()->running->groups.back().push_back({to, from, kBytes});
}
inline void copy_async_or_zero(void* to, const void* from, bool exists) {
  if (exists) return copy_async<16>(to, from);
  static const char zeros[16] = {};
  emulation::Block::current()->running->groups.back().push_back({to, zeros, 16});
}
inline void copy_async_commit() { emulation::Block::current()->running->groups.emplace_back(); }
template <int kGroups>
void copy_async_wait() {
  emulation::arrive(kGroups);
}

inline uint32_t float_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float bits_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline float half_to_float(uint16_t bits) {
  const float sign = bits >> 15 ? -1.f : 1.f;
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
  return sign * (exponent ? std::ldexp(float(1024 + mantissa), exponent - 25) : std::ldexp(float(mantissa), -24));
}
inline uint16_t float_to_half(float x) {  // to nearest, ties to even
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  if (std::isnan(x)) return 0x7fff;
  const float a = std::fabs(x);
  if (a >= 65520.f) return sign | 0x7c00;
  int exponent;
  std::frexp(a, &exponent);
  const int unit = a == 0 ? -24 : std::max(exponent - 11, -24);  // of the last place
  const auto places = int(std::nearbyint(std::ldexp(a, -unit)));
  if (unit == -24) return uint16_t(sign | places);
  return uint16_t(sign | ((unit + 24) * 1024 + places));
}

inline uint32_t floats_to_halves(float low, float high) {
  return uint32_t(float_to_half(high)) << 16 | float_to_half(low);
}
inline uint16_t float_to_bfloat16(float x) {  // to nearest, ties to even
  const uint32_t bits = float_bits(x);
  return std::isnan(x) ? 0x7fff : uint16_t((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}
inline uint32_t floats_to_bfloat16s(float low, float high) {
  return uint32_t(float_to_bfloat16(high)) << 16 | float_to_bfloat16(low);
}

inline float fast_exp(float x) { return std::exp(x); }
inline float fast_reciprocal(float x) { return 1 / x; }

constexpr bool kTensorCores = true;

template <size_t kMatrices>
void load_matrices(uint32_t (&words)[kMatrices], const void* row) {
  emulation::Block& block = *emulation::Block::current();
  emulation::Fiber& self = *block.running;
  if (reinterpret_cast<uintptr_t>(row) % 16) {
    std::fprintf(stderr, "emulation: a row of a matrix is not aligned\n");
    std::abort();
  }
  self.row = row;
  block.wait(emulation::Waiting::warp);
  const unsigned lane = self.thread.x % 32;
  for (unsigned i = 0; i < kMatrices; i++) {
    std::memcpy(&words[i], static_cast<const char*>(block.lane(8 * i + lane / 4).row) + lane % 4 * 4, 4);
  }
  block.wait(emulation::Waiting::warp);
}

inline void mma_bfloat16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulation::multiply(d, a, b, 2, [](uint32_t word, int i) { return bits_float(i ? word & 0xffff0000u : word << 16); });
}
inline void mma_float16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulation::multiply(d, a, b, 2, [](uint32_t word, int i) { return half_to_float(uint16_t(i ? word >> 16 : word)); });
}
inline uint32_t to_tf32(float x) {  // to nearest, ties away from zero
  return std::isfinite(x) ? (float_bits(x) + 0x1000u) & ~0x1fffu : float_bits(x);
}
inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulation::multiply(d, a, b, 1, [](uint32_t word, int) { return bits_float(word & ~0x1fffu); });
}

}  // namespace cuda
}  // namespace fastrnn

#define threadIdx (fastrnn::emulation::Block::current()->running->thread)
#define blockIdx (fastrnn::emulation::Block::current()->index)
inline void __syncthreads() { fastrnn::emulation::Block::current()->wait(fastrnn::emulation::Waiting::block); }
