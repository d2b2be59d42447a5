// driver [test ...]: runs all tests, or those named.
#include <chrono>
#include <cstring>
#include <thread>

#include "check.h"
#include "cpu/threads.h"

int main(int argc, char** argv) {
  const struct {
    const char* name;
    void (*run)();
  } tests[] = {{"machine", test_machine}, {"memory", test_memory},   {"threads", test_threads},
               {"fork", test_fork},       {"kernels", test_kernels}, {"limits", test_limits}};
  for (const auto& test : tests) {
    bool wanted = argc == 1;
    for (int i = 1; i < argc; ++i) wanted |= std::strcmp(argv[i], test.name) == 0;
    if (!wanted) continue;
    const auto start = std::chrono::steady_clock::now();
    test.run();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    std::printf("%-8s ok  %.2f s\n", test.name, seconds.count());
  }
  // Leave while a team is at work: the process must still end well.
  std::thread([] {
    for (;;) fastrnn::run_team(2, [](void*, fastrnn::Team& team, int tid) { team.barrier(tid); }, nullptr);
  }).detach();
  std::this_thread::sleep_for(std::chrono::milliseconds(10));
  return 0;
}
