// The limits of the machine that a benchmark compares times with, as this process meets them now.
#pragma once

#include "fastrnn.h"

namespace fastrnn {

// Operations per second (a fused multiply-add is two) of `threads` threads together, with the instructions in use.
double peak_flops(Dtype dtype, int threads, double seconds);

// Bytes per second that `threads` threads together read, each again and again through bytes_per_thread of its own.
double read_bandwidth(int64_t bytes_per_thread, int threads, double seconds);

// Median time, in seconds, that two threads need to answer each other once through a shared variable.
double round_trip(double seconds);

}  // namespace fastrnn
