// A child process has its parent's memory and one of its threads. Teams and cache must work in it, whatever the others
// did.
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.h"
#include "cpu/memory.h"
#include "cpu/threads.h"

using fastrnn::run_team;
using fastrnn::Team;

namespace {

// Runs f in a child; true if it returned and the child exited as usual within a minute.
bool survives_in_child(void (*f)()) {
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    alarm(60);  // a deadlock ends here
    f();
    _exit(0);
  }
  int status = -1;
  return waitpid(child, &status, 0) == child && status == 0;
}

void use_team(int size) {
  std::atomic<int> calls{0};
  run_team(
      size,
      [](void* context, Team& team, int tid) {
        team.barrier(tid);
        ++*static_cast<std::atomic<int>*>(context);
        team.barrier(tid);
      },
      &calls);
  CHECK(calls == size);
}

void use_memory() {
  const auto lease = std::make_shared<fastrnn::Memory>();
  for (size_t bytes : {1000, 50000, 900, 200000}) {
    const fastrnn::Buffer buffer = fastrnn::acquire(bytes, lease);
    std::memset(buffer.data(), 1, bytes);
  }
}

void use_all() {
  for (int i = 0; i < 20; ++i) {
    use_memory();
    use_team(kThreadSanitizer ? 1 : 3);  // it cannot follow threads that are started after a fork
  }
}

std::atomic<int> work_done{0};

// In a child whose address space has no room for more stacks than its parent had.
void fail_to_start_threads() {
  use_team(2);
  const rlimit limit{1, 1};
  CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
  CHECK(throws<std::runtime_error>([] { run_team(1000, [](void*, Team&, int) { ++work_done; }, nullptr); }));
  CHECK(work_done == 0);
  use_team(2);  // what was there still works
}

}  // namespace

void test_fork() {
  if (kAddressSanitizer) return;  // a child may find its allocator locked
  use_team(4);
  CHECK(survives_in_child(use_all));
  std::atomic<bool> stop{false};
  std::vector<std::thread> busy;
  for (int i = 0; i < 4; ++i)
    busy.emplace_back([&stop] {
      while (!stop) {
        use_memory();
        use_team(2);
      }
    });
  for (int i = 0; i < 20; ++i) CHECK(survives_in_child(use_all));
  stop = true;
  for (auto& thread : busy) thread.join();
  use_team(4);
  if (!kThreadSanitizer) CHECK(survives_in_child(fail_to_start_threads));
}
