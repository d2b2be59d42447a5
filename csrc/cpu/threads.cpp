#include "cpu/threads.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#define FASTRNN_POSIX 1
#endif
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "cpu/machine.h"

namespace fastrnn {
namespace {

using Clock = std::chrono::steady_clock;

// Longer than the gap between a forward and its backward, shorter than anyone would notice as load.
constexpr auto kSpinTime = std::chrono::microseconds(50);
constexpr int kSpins = 32;  // between two looks at the clock, which cost some 25 ns each; a pause costs 10 to 60

inline void pause() {
#if defined(__SSE2__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");  // `yield` does nothing on most cores
#endif
}

// The CPU that the calling thread runs on, or -1 where that is unknown.
inline int current_cpu() {
#ifdef __linux__
  return sched_getcpu();
#else
  return -1;
#endif
}

// A count that only grows while somebody may wait for it. Members of the pool wait on nothing else.
class Count {
 public:
  void reset() { value_.store(0, std::memory_order_relaxed); }

  // Returns the new count. Those who sleep are only woken by wake().
  uint64_t add() { return value_.fetch_add(1) + 1; }

  // Between a sleeper that announces itself and then looks at the count, and an add() that is followed by a look for
  // sleepers, sequential consistency lets at least one see the other: no wake-up is lost.
  void wake() {
    if (sleepers_.load() == 0) return;
    {
      std::lock_guard<std::mutex> lock(mutex_);
    }  // a sleeper is now either before its last look or in wait()
    changed_.notify_all();
  }

  bool reached(uint64_t target) const { return value_.load(std::memory_order_acquire) >= target; }

  bool spin(uint64_t target) const {
    for (int i = 0; i < kSpins; ++i) {
      if (reached(target)) return true;
      pause();
    }
    return false;
  }

  bool spin_long(uint64_t target) const {
    const auto deadline = Clock::now() + kSpinTime;
    do {
      if (spin(target)) return true;
    } while (Clock::now() < deadline);
    return false;
  }

  void sleep(uint64_t target) {
    std::unique_lock<std::mutex> lock(mutex_);
    sleepers_.fetch_add(1);
    while (value_.load() < target) changed_.wait(lock);
    sleepers_.fetch_sub(1);
  }

 private:
  alignas(128) std::atomic<uint64_t> value_{0};
  alignas(128) std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable changed_;
};

std::atomic<unsigned> forks{0};

// Members at work, in all teams together.
std::atomic<int> busy_members{0};
const int cpus = usable_cpus();

// What the pool knows of one member.
struct Member {
  void note_cpu() {
    const int now = current_cpu();
    if (cpu.load(std::memory_order_relaxed) != now) cpu.store(now, std::memory_order_relaxed);
  }
  bool shares_cpu(const Member& other) const {
    const int mine = cpu.load(std::memory_order_relaxed);
    return mine >= 0 && mine == other.cpu.load(std::memory_order_relaxed);
  }

  Count orders;                           // one more for each run it takes part in; unused for the caller
  alignas(128) std::atomic<int> cpu{-1};  // where it was last seen
};

// Spins while that helps, then sleeps. It does not help when members outnumber the CPUs, nor when a busy machine has
// put the member that is waited for on this very CPU: then spinning keeps it from running.
template <class SharesCpu>
void wait(Count& count, uint64_t target, SharesCpu shares_cpu) {
  if (count.spin(target)) return;
  if (busy_members.load(std::memory_order_relaxed) <= cpus && !shares_cpu() && count.spin_long(target)) return;
  count.sleep(target);
}

// A team with its helper threads. It serves one run at a time and is never destroyed.
class Crew : public Team {
 public:
  void enlist(int size);
  void hire(int size);
  void run(int size, Work work, void* context);
  // On the runtime's threads, for which members need only be enlisted; false: it gave too few, and nothing ran.
  bool run(const OpenMp& runtime, int size, Work work, void* context);
  void meet(int tid);  // Team::barrier

 private:
  Member& member(int tid) { return tid == 0 ? caller_ : *helpers_[tid - 1]; }
  bool shares_cpu(int tid);
  void help(int tid, Member& self);
  void begin(int size, Work work, void* context);
  void end();

  // Between runs helpers look at nothing but caller_ and themselves: the rest then changes under their feet.
  Member caller_;
  std::vector<std::unique_ptr<Member>> helpers_;  // tid 1, 2, ...
  int hired_ = 0;                                 // helpers with a thread of their own
  Work work_ = nullptr;
  void* context_ = nullptr;
  Count arrivals_;  // at barriers
  Count finished_;  // helpers that are done with the run
};

bool Crew::shares_cpu(int tid) {
  for (int other = 0; other < size_; ++other)
    if (other != tid && member(tid).shares_cpu(member(other))) return true;
  return false;
}

void Crew::meet(int tid) {
  member(tid).note_cpu();
  const uint64_t size = static_cast<uint64_t>(size_);
  const uint64_t arrived = arrivals_.add();
  const uint64_t target = (arrived + size - 1) / size * size;  // every barrier takes `size` arrivals
  if (arrived == target)
    arrivals_.wake();
  else
    wait(arrivals_, target, [this, tid] { return shares_cpu(tid); });
}

void Crew::help(int tid, Member& self) {
  const FlushDenormals flush;
  for (uint64_t order = 1;; ++order) {
    wait(self.orders, order, [this, &self] { return self.shares_cpu(caller_); });
    self.note_cpu();
    const uint64_t helpers = static_cast<uint64_t>(size_ - 1);  // read now: after add() the next run may change it
    work_(context_, *this, tid);
    if (finished_.add() == helpers) finished_.wake();
  }
}

// Signals are for the application's own threads; only faults of the thread itself stay deliverable.
class BlockSignals {
 public:
#ifdef FASTRNN_POSIX
  BlockSignals() {
    sigset_t all;
    sigfillset(&all);
    for (int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT}) sigdelset(&all, fault);
    pthread_sigmask(SIG_SETMASK, &all, &saved_);
  }
  ~BlockSignals() { pthread_sigmask(SIG_SETMASK, &saved_, nullptr); }

 private:
  sigset_t saved_;
#endif
};

// Makes sure that `size` members exist.
void Crew::enlist(int size) {
  helpers_.reserve(static_cast<size_t>(size - 1));
  while (static_cast<int>(helpers_.size()) < size - 1) helpers_.push_back(std::make_unique<Member>());
}

// Makes sure that they have threads. Those that were started before a failure stay for later runs.
void Crew::hire(int size) {
  if (hired_ >= size - 1) return;
  enlist(size);
  const BlockSignals block;  // new threads inherit the mask
  for (int tid = hired_ + 1; tid < size; hired_ = tid++) {
    std::thread([this, tid, self = helpers_[size_t(tid - 1)].get()] { help(tid, *self); }).detach();
  }
}

void Crew::begin(int size, Work work, void* context) {
  size_ = size;
  work_ = work;
  context_ = context;
  arrivals_.reset();
  finished_.reset();
  busy_members.fetch_add(size, std::memory_order_relaxed);
  caller_.note_cpu();
}

void Crew::end() { busy_members.fetch_sub(size_, std::memory_order_relaxed); }

void Crew::run(int size, Work work, void* context) {
  begin(size, work, context);
  for (int tid = 1; tid < size; ++tid) {
    member(tid).orders.add();
    member(tid).orders.wake();
  }
  work(context, *this, 0);
  caller_.note_cpu();
  wait(finished_, static_cast<uint64_t>(size - 1), [this] { return shares_cpu(0); });
  end();
}

bool Crew::run(const OpenMp& runtime, int size, Work work, void* context) {
  struct Region {
    Crew& crew;
    const OpenMp& runtime;
    bool complete;
  } region{*this, runtime, true};
  begin(size, work, context);
  const auto member_of_region = [](void* data) {
    const auto& [crew, runtime, complete] = *static_cast<Region*>(data);
    const int tid = runtime.thread_num();
    if (runtime.num_threads() < crew.size_) {
      if (tid == 0) static_cast<Region*>(data)->complete = false;
    } else if (tid < crew.size_) {
      const FlushDenormals flush;
      crew.member(tid).note_cpu();
      crew.work_(crew.context_, crew, tid);
    }
  };
  // All that it has, as its other users ask for: at any other number it would end some threads and start others.
  runtime.parallel(member_of_region, &region, static_cast<unsigned>(std::max(size, runtime.max_threads())), 0);
  end();
  return region.complete;
}

// The crews that no caller uses now, the warmest last.
class Pool {
 public:
  Crew* take() {
    std::lock_guard<std::mutex> lock(mutex_);
    if (idle_.empty()) {
      idle_.reserve(++crews_);  // so that give_back never allocates
      return new Crew;
    }
    Crew* crew = idle_.back();
    idle_.pop_back();
    return crew;
  }

  void give_back(Crew* crew) {
    std::lock_guard<std::mutex> lock(mutex_);
    idle_.push_back(crew);
  }

 private:
  std::mutex mutex_;
  std::vector<Crew*> idle_;
  size_t crews_ = 0;
};

// Never destroyed: helpers sleep on it, and daemon threads may still run, while the process exits. Made when the
// library is loaded, so that no fork can fall into its construction.
alignas(Pool) unsigned char pool_storage[sizeof(Pool)];

Pool& make_pool() {
#ifdef FASTRNN_POSIX
  // Helpers do not survive a fork, and the lock may be held by a thread that does not either: the child starts afresh
  // and leaves its parent's crews alone.
  pthread_atfork(nullptr, nullptr, [] {
    new (pool_storage) Pool;
    busy_members.store(0);
    forks.fetch_add(1);
  });
#endif
  return *new (pool_storage) Pool;
}

Pool& pool = make_pool();

class Solo : public Team {};

std::atomic<const OpenMp*> openmp{nullptr};

// A positive integer at the start of `text`, else 0. With `alone`, nothing may follow it.
int positive_integer(const char* text, bool alone) {
  if (!text) return 0;
  char* end = nullptr;
  const long value = std::strtol(text, &end, 10);
  if (end == text || value < 1) return 0;
  while (*end == ' ' || *end == '\t') ++end;
  if (*end != '\0' && (alone || *end != ',')) return 0;
  return static_cast<int>(std::min<long>(value, kMaxThreads + 1L));
}

std::string range_message(const std::string& got) {
  return "must be an integer from 1 to " + std::to_string(kMaxThreads) + ", got " + got;
}

std::atomic<int>& ceiling() {
  static std::atomic<int> threads{default_num_threads()};
  return threads;
}

}  // namespace

unsigned fork_count() { return forks.load(std::memory_order_relaxed); }

void Team::barrier(int tid) {
  if (size_ > 1) static_cast<Crew*>(this)->meet(tid);
}

void run_team(int size, Work work, void* context) {
  if (size < 1 || size > kMaxThreads) throw std::runtime_error("run_team: size " + range_message(std::to_string(size)));
  if (size == 1) {
    const FlushDenormals flush;
    Solo solo;
    work(context, solo, 0);
    return;
  }
  Crew* crew = pool.take();
  try {
    const OpenMp* runtime = openmp.load(std::memory_order_acquire);
    if (runtime && fork_count() == 0 && !runtime->in_parallel()) {
      crew->enlist(size);
      if (crew->run(*runtime, size, work, context)) return pool.give_back(crew);
    }
    crew->hire(size);
  } catch (const std::exception& error) {
    pool.give_back(crew);
    throw std::runtime_error("fastrnn: cannot start the threads of a team of " + std::to_string(size) + " (" +
                             error.what() + "); lower the count with fastrnn.set_num_threads");
  }
  {
    const FlushDenormals flush;
    crew->run(size, work, context);
  }
  pool.give_back(crew);
}

void use_openmp(const OpenMp* runtime) { openmp.store(runtime, std::memory_order_release); }

int default_num_threads() {
  const char* own = std::getenv("FASTRNN_NUM_THREADS");
  if (own && *own) {
    const int threads = positive_integer(own, true);
    if (threads < 1 || threads > kMaxThreads)
      throw std::invalid_argument("FASTRNN_NUM_THREADS: " + range_message("'" + std::string(own) + "'"));
    return threads;
  }
  int threads = std::min(usable_cores(), kMaxThreads);
  if (const int openmp = positive_integer(std::getenv("OMP_NUM_THREADS"), false)) threads = std::min(threads, openmp);
  return threads;
}

int num_threads() { return ceiling().load(std::memory_order_relaxed); }

void set_num_threads(int n) {
  if (n < 1 || n > kMaxThreads) throw std::invalid_argument("set_num_threads: n " + range_message(std::to_string(n)));
  ceiling().store(n, std::memory_order_relaxed);
}

#if defined(__SSE2__)
FlushDenormals::FlushDenormals() : saved_(_mm_getcsr()) {
  _mm_setcsr(0x9fc0);  // flush to zero, denormals are zero, all exceptions masked, round to nearest
}
FlushDenormals::~FlushDenormals() { _mm_setcsr(static_cast<unsigned>(saved_)); }
#elif defined(__aarch64__)
FlushDenormals::FlushDenormals() {
  asm volatile("mrs %0, fpcr" : "=r"(saved_));
  asm volatile("msr fpcr, %0" ::"r"(uint64_t{1} << 24));  // FZ; traps off, round to nearest
}
FlushDenormals::~FlushDenormals() { asm volatile("msr fpcr, %0" ::"r"(saved_)); }
#else
FlushDenormals::FlushDenormals() : saved_(0) {}
FlushDenormals::~FlushDenormals() {}
#endif

}  // namespace fastrnn
