#include "cpu/machine.h"

#include <algorithm>
#include <climits>
#include <cmath>
#include <fstream>
#include <set>
#include <sstream>
#include <thread>
#include <vector>

#ifdef __linux__
#include <sched.h>
#endif
#ifdef __APPLE__
#include <sys/sysctl.h>
#endif

namespace fastrnn {
namespace {

[[maybe_unused]] int hardware_threads() { return std::max(1, static_cast<int>(std::thread::hardware_concurrency())); }

#ifdef __linux__

// The numbers of the CPUs that the calling thread may run on; empty if the kernel does not tell.
std::vector<int> allowed_cpus() {
  std::vector<int> cpus;
  for (int most = 1024; most <= 1 << 20; most *= 2) {  // the kernel refuses sets smaller than its own
    cpu_set_t* set = CPU_ALLOC(most);
    if (!set) break;
    const size_t bytes = CPU_ALLOC_SIZE(most);
    const bool known = sched_getaffinity(0, bytes, set) == 0;
    for (int cpu = 0; known && cpu < most; ++cpu)
      if (CPU_ISSET_S(cpu, bytes, set)) cpus.push_back(cpu);
    CPU_FREE(set);
    if (known) break;
  }
  return cpus;
}

std::string first_line(const std::string& path) {
  std::string line;
  std::ifstream file(path);
  std::getline(file, line);
  return line;
}

// CPUs worth of time that one directory of a cgroup hierarchy grants; INT_MAX: no limit.
int directory_quota(const std::string& directory) {
  double quota = -1, period = 0;
  std::istringstream v2(first_line(directory + "/cpu.max"));  // "max 100000" or "150000 100000"
  if (!(v2 >> quota >> period)) {
    std::istringstream(first_line(directory + "/cpu.cfs_quota_us")) >> quota;  // -1: no limit
    std::istringstream(first_line(directory + "/cpu.cfs_period_us")) >> period;
  }
  if (quota <= 0 || period <= 0) return INT_MAX;
  return static_cast<int>(std::min(std::ceil(quota / period), 1e9));
}

bool has_item(const std::string& list, const std::string& item) {
  return ("," + list + ",").find("," + item + ",") != std::string::npos;
}

struct Mount {
  std::string root;  // the directory of the hierarchy that is mounted; in a container rarely "/"
  std::string point;
};

// Where the cgroup v2 hierarchy, or with v1 the hierarchy of the cpu controller, is mounted.
// A line: id parent device ROOT POINT options [tags...] - TYPE source SUPER_OPTIONS
std::vector<Mount> cgroup_mounts(const std::string& root, bool v2) {
  std::vector<Mount> mounts;
  std::ifstream file(root + "/proc/self/mountinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t dash = line.find(" - ");
    if (dash == std::string::npos) continue;
    std::string skip, type, source, options;
    Mount mount;
    std::istringstream(line) >> skip >> skip >> skip >> mount.root >> mount.point;
    std::istringstream(line.substr(dash + 3)) >> type >> source >> options;
    if (v2 ? type == "cgroup2" : type == "cgroup" && has_item(options, "cpu")) mounts.push_back(mount);
  }
  return mounts;
}

// The tightest quota on the way from this process's cgroup up to the top of its hierarchy.
int cgroup_quota(const std::string& root) {
  int least = INT_MAX;
  std::ifstream file(root + "/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {  // id:controllers:path, with v2 0::path
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (!controllers.empty() && !has_item(controllers, "cpu")) continue;
    for (const Mount& mount : cgroup_mounts(root, controllers.empty())) {
      std::string path = line.substr(second + 1);
      const std::string above = mount.root == "/" ? "" : mount.root;
      // Seen from inside a container the path may lie outside the mount; then the mount's top is all there is.
      path = path.compare(0, above.size(), above) == 0 ? path.substr(above.size()) : "";
      for (;; path.erase(path.rfind('/'))) {
        least = std::min(least, directory_quota(root + mount.point + path));
        if (path.rfind('/') == std::string::npos) break;
      }
    }
  }
  return least;
}

// CPUs of one physical core name the same siblings.
int physical_cores(const std::string& root, const std::vector<int>& cpus) {
  std::set<std::string> cores;
  for (int cpu : cpus) {
    const std::string number = std::to_string(cpu);
    const std::string siblings =
        first_line(root + "/sys/devices/system/cpu/cpu" + number + "/topology/thread_siblings_list");
    cores.insert(siblings.empty() ? "cpu" + number : siblings);
  }
  return static_cast<int>(cores.size());
}

#endif

}  // namespace

#ifdef __linux__

int usable_cpus(const std::string& root) {
  const std::vector<int> cpus = allowed_cpus();
  return std::min(cpus.empty() ? hardware_threads() : static_cast<int>(cpus.size()), cgroup_quota(root));
}

int usable_cores(const std::string& root) {
  const std::vector<int> cpus = allowed_cpus();
  const int usable = usable_cpus(root);
  return cpus.empty() ? usable : std::min(usable, physical_cores(root, cpus));
}

#else

int usable_cpus(const std::string&) { return hardware_threads(); }

int usable_cores(const std::string& root) {
#ifdef __APPLE__
  int cores = 0;
  size_t size = sizeof cores;
  if (sysctlbyname("hw.physicalcpu", &cores, &size, nullptr, 0) == 0 && cores > 0)
    return std::min(cores, usable_cpus(root));
#endif
  return usable_cpus(root);
}

#endif

}  // namespace fastrnn
