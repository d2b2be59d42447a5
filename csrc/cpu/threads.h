// Teams of threads for the kernels: one call, one team, one barrier per time step.
//
// Every concurrent caller gets a team of its own, so the number of members, and with it the order of every sum, never
// depends on load. Members wait by spinning for some tens of microseconds and then sleep: an idle process burns no
// cycles, and a busy machine gets its cores back. Affinity is never touched.
#pragma once

#include <cstdint>

namespace fastrnn {

// The members of one running call. Created by run_team only.
class Team {
 public:
  int size() const { return size_; }

  // Returns when all size() members have called it; what any of them wrote before is visible to all of them after.
  void barrier(int tid);

  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

 protected:
  Team() = default;
  ~Team() = default;
  int size_ = 1;
};

using Work = void (*)(void* context, Team& team, int tid);

// Calls work(context, team, tid) once for each tid in 0..size-1 and returns when all are done; tid 0 runs on the
// calling thread. Denormals are flushed while work runs. work must not throw; it may call run_team itself. Throws
// std::runtime_error, before any work ran, when the threads cannot be created.
void run_team(int size, Work work, void* context);

// The same for anything that is called as work(team, tid).
template <class Callable>
void on_team(int size, const Callable& work) {
  run_team(
      size, [](void* context, Team& team, int tid) { (*static_cast<const Callable*>(context))(team, tid); },
      const_cast<void*>(static_cast<const void*>(&work)));
}

// What this process should use: the least of the CPUs it may run on, its cgroup quota (rounded up), the physical cores
// among those CPUs and OMP_NUM_THREADS; or FASTRNN_NUM_THREADS, which overrides them all. Throws std::invalid_argument
// when FASTRNN_NUM_THREADS is not an integer from 1 to kMaxThreads.
int default_num_threads();

// The process-wide ceiling; default_num_threads() until it is set. Small problems use fewer threads.
int num_threads();
void set_num_threads(int n);

constexpr int kMaxThreads = 1024;

// The threads of an OpenMP runtime, reached by the functions that GCC's code calls (LLVM's runtime has them as well).
struct OpenMp {
  void (*parallel)(void (*region)(void*), void* data, unsigned threads, unsigned flags);
  int (*thread_num)();
  int (*num_threads)();
  int (*max_threads)();
  int (*in_parallel)();
};

// Teams are made of this runtime's threads from now on, but within its own parallel regions, after a fork and where it
// gives too few; null: of our own again. For processes whose other work runs there: its threads spin on between
// regions, and a second set of threads would have to share the cores with them. The runtime must outlive the process's
// teams.
void use_openmp(const OpenMp* runtime);

// How many forks lie between the first process and this one. A lock taken under another number may be held by a thread
// that does not exist here.
unsigned fork_count();

// Sets the floating-point state that the kernels are written for (denormals are zero, round to nearest, no traps) and
// restores the caller's, so that neither side sees the other's.
class FlushDenormals {
 public:
  FlushDenormals();
  ~FlushDenormals();
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  uint64_t saved_;
};

}  // namespace fastrnn
