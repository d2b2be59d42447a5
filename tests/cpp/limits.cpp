// The probes read and write no more than their own memory, whatever the sizes and the number of threads.
#include "cpu/limits.h"

#include "check.h"
#include "cpu/isa.h"

using namespace fastrnn;

void test_limits() {
  for (Isa isa : available()) {
    set_current(name(isa));
    for (int threads : {1, 3}) {
      CHECK(peak_flops(Dtype::float32, threads, 0.001) > 0);
      CHECK(peak_flops(Dtype::float64, threads, 0.001) > 0);
      for (int64_t bytes : {1, 512, 100001}) CHECK(read_bandwidth(bytes, threads, 0.001) > 0);
    }
  }
  for (double seconds : {0.0, 0.001}) CHECK(round_trip(seconds) > 0);
}
