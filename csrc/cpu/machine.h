// How much of the machine this process may use.
#pragma once

#include <string>

namespace fastrnn {

// Both are at least 1. root: prefix of /proc and /sys, for tests.
int usable_cpus(const std::string& root = "");   // the least of CPU affinity and cgroup quota (rounded up)
int usable_cores(const std::string& root = "");  // and of the physical cores among those CPUs

}  // namespace fastrnn
