#include "cpu/memory.h"

#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

#include "check.h"

using fastrnn::acquire;
using fastrnn::Buffer;
using fastrnn::cached_bytes;
using fastrnn::Memory;

namespace {

constexpr size_t kMega = size_t{1} << 20;

uintptr_t address(const Buffer& buffer) { return reinterpret_cast<uintptr_t>(buffer.data()); }

void test_buffers() {
  for (size_t bytes :
       {size_t{1}, size_t{127}, size_t{4096}, size_t{100001}, 3 * kMega, 4 * kMega, 4 * kMega + 1, 9 * kMega}) {
    Buffer buffer = acquire(bytes, nullptr);
    CHECK(buffer.size() == bytes);
    CHECK(address(buffer) % 128 == 0);
    if (bytes >= 4 * kMega) CHECK(address(buffer) % (2 * kMega) == 0);
    std::memset(buffer.data(), 1, bytes);
    const uintptr_t before = address(buffer);
    Buffer moved = std::move(buffer);
    CHECK(!buffer.data() && buffer.size() == 0 && address(moved) == before);
    moved = acquire(10, nullptr);
    CHECK(moved.size() == 10);
  }
  CHECK(!acquire(0, nullptr).data());
  CHECK(cached_bytes() == 0);  // without a lease nothing is kept
  for (size_t absurd : {std::numeric_limits<size_t>::max(), size_t{1} << 62, size_t{1} << 60})
    CHECK(throws<std::bad_alloc>([=] { acquire(absurd, nullptr); }));
}

void test_reuse() {
  auto lease = std::make_shared<Memory>();
  uintptr_t large, small;
  {
    const Buffer first = acquire(100000, lease), second = acquire(40000, lease);
    large = address(first);
    small = address(second);
  }
  const size_t all = cached_bytes();
  CHECK(all >= 140000);
  const auto served_from = [&](size_t bytes, const std::shared_ptr<Memory>& by) {
    const Buffer buffer = acquire(bytes, by);
    CHECK(cached_bytes() < all);
    return address(buffer);
  };
  CHECK(served_from(99000, lease) == large);  // sizes are rounded, so near ones share
  CHECK(served_from(60000, lease) == large);  // up to twice as large as needed
  CHECK(served_from(30000, lease) == small);  // the smallest that will do
  CHECK(served_from(100000, nullptr) == large);
  {
    CHECK(acquire(10000, lease).data());
  }  // neither fits: a third block, for which the oldest makes room
  CHECK(cached_bytes() <= all);
  fastrnn::release_memory();
  CHECK(cached_bytes() == 0);
  {
    const Buffer buffer = acquire(1000, lease);
  }
  CHECK(cached_bytes() > 0);
  lease.reset();
  CHECK(cached_bytes() == 0);
}

void test_bound() {
  auto small = std::make_shared<Memory>(), large = std::make_shared<Memory>();
  small->note(2 * kMega);
  large->note(8 * kMega);
  {
    std::vector<Buffer> tapes;  // more at once than one call needs
    for (int i = 0; i < 10; ++i) tapes.push_back(acquire(2 * kMega, small));
    CHECK(cached_bytes() == 0);
  }
  CHECK(cached_bytes() >= 2 * kMega && cached_bytes() < 3 * kMega);
  {
    const Buffer buffer = acquire(8 * kMega, large);
  }
  CHECK(cached_bytes() >= 8 * kMega && cached_bytes() <= 9 * kMega + kMega);
  large.reset();
  CHECK(cached_bytes() < 3 * kMega);
  Buffer open = acquire(kMega, small);
  small.reset();
  open.reset();  // outlives its layer's own reference
  CHECK(cached_bytes() == 0);
}

void fill_and_check(unsigned seed, int rounds) {
  std::mt19937 random(seed);
  const auto lease = std::make_shared<Memory>();
  std::vector<Buffer> open;
  for (int i = 0; i < rounds; ++i) {
    const size_t bytes = size_t{1} << (4 + random() % 16);
    lease->note(bytes);
    open.push_back(acquire(bytes, random() % 4 ? lease : nullptr));
    std::memset(open.back().data(), static_cast<int>(seed), bytes);
    if (open.size() > 4) open.erase(open.begin() + static_cast<long>(random() % open.size()));
    for (const Buffer& buffer : open) {
      const auto* data = static_cast<const unsigned char*>(buffer.data());
      CHECK(data[0] == seed && data[buffer.size() - 1] == seed);
    }
    if (random() % 64 == 0) fastrnn::release_memory();
  }
}

void test_contention() {
  std::vector<std::thread> threads;
  for (unsigned seed = 1; seed <= 6; ++seed) threads.emplace_back([seed] { fill_and_check(seed, 1000); });
  for (auto& thread : threads) thread.join();
  CHECK(cached_bytes() == 0);
}

void test_poison() {
#ifdef __SANITIZE_ADDRESS__
  const auto lease = std::make_shared<Memory>();
  char* data;
  {
    const Buffer buffer = acquire(1001, lease);
    data = static_cast<char*>(buffer.data());
    CHECK(!__asan_address_is_poisoned(data + 1000));
    CHECK(__asan_address_is_poisoned(data + 1001));
    CHECK(data[0] == char(0xff));
  }
  CHECK(__asan_address_is_poisoned(data));
#endif
}

}  // namespace

void test_memory() {
  test_buffers();
  test_reuse();
  test_bound();
  test_contention();
  test_poison();
}
