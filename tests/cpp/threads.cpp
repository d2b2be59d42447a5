#include "cpu/threads.h"

#include <signal.h>
#include <time.h>

#include <algorithm>
#include <cfenv>
#include <chrono>
#include <limits>
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.h"

using fastrnn::run_team;
using fastrnn::set_num_threads;
using fastrnn::Team;

namespace {

struct Exchange {
  int steps;
  std::vector<long> slots;  // plain memory: ThreadSanitizer sees whether the barrier orders it
  std::vector<int> calls;
  std::thread::id caller = std::this_thread::get_id();

  Exchange(int size, int steps) : steps(steps), slots(static_cast<size_t>(size)), calls(static_cast<size_t>(size)) {}

  static void work(void* context, Team& team, int tid) {
    auto& self = *static_cast<Exchange*>(context);
    ++self.calls[static_cast<size_t>(tid)];
    CHECK((std::this_thread::get_id() == self.caller) == (tid == 0));
    CHECK(team.size() == static_cast<int>(self.slots.size()));
    for (int step = 1; step <= self.steps; ++step) {
      self.slots[static_cast<size_t>(tid)] = step * 1000L + tid;
      team.barrier(tid);
      long sum = 0;
      for (long slot : self.slots) sum += slot;
      const long size = team.size();
      CHECK(sum == size * step * 1000L + size * (size - 1) / 2);
      team.barrier(tid);
    }
  }

  void run() {
    run_team(static_cast<int>(slots.size()), work, this);
    for (int n : calls) CHECK(n == 1);
  }
};

void exchange(int size, int steps) { Exchange(size, steps).run(); }

void callers(int threads, int runs) {
  std::vector<std::thread> all;
  for (int i = 0; i < threads; ++i)
    all.emplace_back([=] {
      for (int run = 0; run < runs; ++run) exchange(1 + (i + run) % 4, 5);
    });
  for (auto& thread : all) thread.join();
}

void nested(void* context, Team& team, int tid) {
  team.barrier(tid);
  exchange(*static_cast<int*>(context), 3);
  team.barrier(tid);
}

// Helpers that are late for a barrier find the others asleep, and the other way round.
void uneven(void*, Team& team, int tid) {
  for (int step = 0; step < 20; ++step) {
    if (step % team.size() == tid) std::this_thread::sleep_for(std::chrono::microseconds(200 * (step % 3)));
    team.barrier(tid);
  }
}

double cpu_seconds() {
  timespec now;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

void test_idle_teams_sleep() {
  exchange(4, 10);
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  const double before = cpu_seconds();
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  CHECK(cpu_seconds() - before < 0.02);
}

void test_floating_point_mode() {
#if defined(__x86_64__) || defined(__aarch64__)
  const auto flushes = [](void*, Team&, int) {
    volatile float denormal = std::numeric_limits<float>::denorm_min() * 4, least = std::numeric_limits<float>::min();
    CHECK(denormal * 1e30f == 0);
    CHECK(least / 2 == 0);
    volatile float one = 1, little = 1e-10f;
    CHECK(one + little == 1);
  };
  std::fesetround(FE_UPWARD);
  for (int size : {1, 3}) {
    run_team(size, flushes, nullptr);
    volatile float denormal = std::numeric_limits<float>::denorm_min() * 4;
    CHECK(denormal * 1e30f > 0);
    volatile float one = 1, little = 1e-10f;
    CHECK(one + little > 1);
  }
  std::fesetround(FE_TONEAREST);
#endif
}

void test_signals_stay_with_the_application() {
  run_team(
      3,
      [](void*, Team&, int tid) {
        sigset_t mask;
        pthread_sigmask(SIG_BLOCK, nullptr, &mask);
        CHECK(sigismember(&mask, SIGINT) == (tid > 0));
        CHECK(sigismember(&mask, SIGPROF) == (tid > 0));
        CHECK(!sigismember(&mask, SIGSEGV));
      },
      nullptr);
}

void test_ceiling() {
  CHECK(fastrnn::num_threads() == fastrnn::default_num_threads());
  set_num_threads(3);
  CHECK(fastrnn::num_threads() == 3);
  CHECK(throws<std::invalid_argument>([] { set_num_threads(0); }));
  CHECK(throws<std::invalid_argument>([] { set_num_threads(fastrnn::kMaxThreads + 1); }));
  CHECK(fastrnn::num_threads() == 3);
  CHECK(throws<std::runtime_error>([] { exchange(0, 1); }));

  setenv("FASTRNN_NUM_THREADS", "5", 1);
  setenv("OMP_NUM_THREADS", "1", 1);
  CHECK(fastrnn::default_num_threads() == 5);
  for (const char* bad : {"0", "-2", "two", "2.5", "2,3", " ", "99999999999999999999"}) {
    setenv("FASTRNN_NUM_THREADS", bad, 1);
    CHECK(throws<std::invalid_argument>(fastrnn::default_num_threads));
  }
  unsetenv("FASTRNN_NUM_THREADS");
  CHECK(fastrnn::default_num_threads() == 1);
  setenv("OMP_NUM_THREADS", "1,4", 1);
  CHECK(fastrnn::default_num_threads() == 1);
  unsetenv("OMP_NUM_THREADS");
  const int all = fastrnn::default_num_threads();
  for (const char* ignored : {"", "0", "many", "4096"}) {
    setenv("OMP_NUM_THREADS", ignored, 1);
    CHECK(fastrnn::default_num_threads() == all);
  }
  unsetenv("OMP_NUM_THREADS");
}

// An OpenMP runtime of our own: a new thread for each member of a region, as many as `gives` at most.
namespace runtime {
thread_local int num = 0, size = 1;
int gives = 1 << 20, regions = 0;

void parallel(void (*region)(void*), void* data, unsigned threads, unsigned) {
  const int members = std::min(static_cast<int>(threads), gives);
  ++regions;
  std::vector<std::thread> others;
  for (int i = 1; i < members; ++i)
    others.emplace_back([=] {
      num = i;
      size = members;
      region(data);
    });
  size = members;
  region(data);
  size = 1;
  for (auto& other : others) other.join();
}

const fastrnn::OpenMp kFunctions{parallel, [] { return num; }, [] { return size; }, [] { return 5; },
                                 [] { return static_cast<int>(size > 1); }};
}  // namespace runtime

void test_openmp() {
  fastrnn::use_openmp(&runtime::kFunctions);
  for (int size : {2, 5, 3, 7}) exchange(size, 20);
  CHECK(runtime::regions == 4);
  exchange(1, 1);
  CHECK(runtime::regions == 4);
  int inner = 2;
  run_team(3, nested, &inner);  // the inner teams have threads of their own
  CHECK(runtime::regions == 5);
  runtime::gives = 2;
  exchange(3, 20);
  exchange(2, 20);
  CHECK(runtime::regions == 7);
  runtime::gives = 1 << 20;
  test_floating_point_mode();
  fastrnn::use_openmp(nullptr);
  exchange(3, 5);
  CHECK(runtime::regions == 8);
}

}  // namespace

void test_threads() {
  test_ceiling();
  for (int size = 1; size <= 9; ++size) exchange(size, 50);
  exchange(32, 5);
  for (int size : {4, 2, 6, 3, 1}) exchange(size, 10);  // one team, fewer and more members
  for (int size : {2, 3, 5}) run_team(size, uneven, nullptr);
  callers(8, 60);
  int inner = 2;
  run_team(3, nested, &inner);
  test_idle_teams_sleep();
  test_floating_point_mode();
  test_signals_stay_with_the_application();
  test_openmp();
}
