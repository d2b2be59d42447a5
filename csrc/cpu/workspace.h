// Named parts of one buffer, and copies between the users' row-major arrays and the kernels' blocks of units.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "cpu/kernels.h"

namespace fastrnn {

// Hands out offsets, aligned so that parts of different threads share no cache line.
class Layout {
 public:
  size_t add(size_t bytes) {
    const size_t at = size_;
    size_ += (bytes + 127) / 128 * 128;
    return at;
  }
  size_t size() const { return size_; }

 private:
  size_t size_ = 0;
};

inline char* at(void* base, size_t offset) { return static_cast<char*>(base) + offset; }

struct Blocks {  // [blocks][rows][lanes], of n units
  void* data;
  int64_t rows, lanes, n;
  size_t element;

  int64_t count() const { return (n + lanes - 1) / lanes; }
  char* row(int64_t block, int64_t r) const {
    return static_cast<char*>(data) + size_t((block * rows + r) * lanes) * element;
  }
  size_t valid_bytes(int64_t block) const { return size_t(std::min(lanes, n - block * lanes)) * element; }

  // Rows 0..count of the blocks that are thread tid's, from rows user_row(r) of a (., n) array; null: zeros.
  template <class UserRow>
  void fill(const void* source, int64_t count_rows, UserRow&& user_row, int tid, int threads) const {
    for (int64_t b = share_begin(count(), tid, threads); b < share_begin(count(), tid + 1, threads); b++) {
      for (int64_t r = 0; r < count_rows; r++) {
        char* out = row(b, r);
        std::memset(out, 0, size_t(lanes) * element);
        if (source) {
          std::memcpy(out, static_cast<const char*>(source) + size_t(user_row(r) * n + b * lanes) * element,
                      valid_bytes(b));
        }
      }
    }
  }

  // The other way: row block_row(r) goes to row user_row(r) of a (., n) array.
  template <class BlockRow, class UserRow>
  void read(void* target, int64_t count_rows, BlockRow&& block_row, UserRow&& user_row, int tid, int threads) const {
    for (int64_t b = share_begin(count(), tid, threads); b < share_begin(count(), tid + 1, threads); b++) {
      for (int64_t r = 0; r < count_rows; r++) {
        std::memcpy(static_cast<char*>(target) + size_t(user_row(r) * n + b * lanes) * element, row(b, block_row(r)),
                    valid_bytes(b));
      }
    }
  }
};

}  // namespace fastrnn
