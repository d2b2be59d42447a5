#include "cpu/machine.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>

#include "check.h"

namespace fs = std::filesystem;
using fastrnn::usable_cores;
using fastrnn::usable_cpus;

namespace {

// A directory that stands for the root of a file system.
class Root {
 public:
  Root() : path_(fs::temp_directory_path() / ("fastrnn-machine-" + std::to_string(getpid()))) {
    fs::remove_all(path_);
    fs::create_directories(path_);
  }
  ~Root() { fs::remove_all(path_); }

  Root& write(const std::string& file, const std::string& text) {
    const fs::path path = path_ / file;
    fs::create_directories(path.parent_path());
    std::ofstream(path) << text << "\n";
    return *this;
  }
  int cpus() const { return usable_cpus(path_.string()); }
  int cores() const { return usable_cores(path_.string()); }

 private:
  fs::path path_;
};

const char* const kV2 = "26 20 0:23 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate";
const char* const kV1 = "31 25 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct";

}  // namespace

void test_machine() {
  CHECK(usable_cores() >= 1 && usable_cores() <= usable_cpus());
#ifdef __linux__
  const int all = Root().cpus();  // affinity alone
  const auto expect = [all](int limit) { return std::min(all, limit); };

  CHECK(Root().cores() == all);  // no topology known: each CPU a core
  CHECK(Root().write("proc/self/cgroup", "0::/").write("proc/self/mountinfo", kV2).cpus() == all);
  {
    Root root;
    root.write("proc/self/cgroup", "0::/user/job").write("proc/self/mountinfo", kV2);
    root.write("sys/fs/cgroup/user/job/cpu.max", "max 100000");
    CHECK(root.cpus() == all);
    root.write("sys/fs/cgroup/user/cpu.max", "110000 100000");  // set above, rounded up
    CHECK(root.cpus() == expect(2));
    root.write("sys/fs/cgroup/user/job/cpu.max", "50000 100000");
    CHECK(root.cpus() == 1 && root.cores() == 1);
    root.write("sys/fs/cgroup/user/job/cpu.max", "nonsense").write("sys/fs/cgroup/user/cpu.max", "0 0");
    CHECK(root.cpus() == all);
  }
  {
    Root root;
    root.write("proc/self/cgroup", "4:memory:/job\n3:cpu,cpuacct:/job\n0::/").write("proc/self/mountinfo", kV1);
    root.write("sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us", "-1");
    root.write("sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us", "100000");
    CHECK(root.cpus() == all);
    root.write("sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us", "90000");
    CHECK(root.cpus() == 1);
  }
  {  // a container: the mount shows only the container's own part of the hierarchy
    Root root;
    root.write("proc/self/cgroup", "0::/docker/abc");
    root.write("proc/self/mountinfo", "26 20 0:23 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw");
    root.write("sys/fs/cgroup/cpu.max", "100000 100000");
    CHECK(root.cpus() == 1);
  }
  {  // siblings count once
    Root root;
    cpu_set_t allowed;
    CHECK(sched_getaffinity(0, sizeof allowed, &allowed) == 0);
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
      if (CPU_ISSET(cpu, &allowed))
        root.write("sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list", "0-1023");
    CHECK(root.cores() == 1 && root.cpus() == all);
  }
#endif
}
