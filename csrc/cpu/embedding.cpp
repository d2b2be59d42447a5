// Rows of a matrix by their numbers, and their gradients back. Threads split the columns: a row that occurs often is
// summed by one thread in the order of its occurrences.
#include <algorithm>
#include <cstring>

#include "cpu/kernels.h"
#include "cpu/threads.h"

namespace fastrnn {

namespace {

constexpr int64_t kBytesPerThread = 128 << 10;
constexpr int64_t kLine = 64;

template <class Work>
void by_columns(int64_t ids, int64_t row_bytes, int max_threads, Work&& work) {
  const int64_t lines = (row_bytes + kLine - 1) / kLine;
  const int threads =
      int(std::clamp<int64_t>(ids * row_bytes / kBytesPerThread, 1, std::min<int64_t>(max_threads, lines)));
  on_team(threads, [&](Team& team, int tid) {
    const int64_t begin = share_begin(lines, tid, team.size()) * kLine;
    work(begin, std::min(share_begin(lines, tid + 1, team.size()) * kLine, row_bytes));
  });
}

template <class T>
void add(T* __restrict to, const T* __restrict from, int64_t n) {
  for (int64_t i = 0; i < n; i++) to[i] += from[i];
}

}  // namespace

void take_rows(const void* matrix, int64_t row_bytes, const int32_t* ids, int64_t n, void* out, int max_threads) {
  by_columns(n, row_bytes, max_threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = 0; i < n; i++) {
      std::memcpy(static_cast<char*>(out) + i * row_bytes + begin,
                  static_cast<const char*>(matrix) + ids[i] * row_bytes + begin, size_t(end - begin));
    }
  });
}

void add_rows(Dtype dtype, void* matrix, int64_t columns, const int32_t* ids, int64_t n, const void* rows,
              int max_threads) {
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    constexpr int64_t size = sizeof(T);
    by_columns(n, columns * size, max_threads, [&](int64_t begin, int64_t end) {
      for (int64_t i = 0; i < n; i++) {
        add(static_cast<T*>(matrix) + ids[i] * columns + begin / size,
            static_cast<const T*>(rows) + i * columns + begin / size, (end - begin) / size);
      }
    });
  };
  dtype == Dtype::float32 ? run(float()) : run(double());
}

}  // namespace fastrnn
