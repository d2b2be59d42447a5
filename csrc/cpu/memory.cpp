#include "cpu/memory.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#define FASTRNN_HAVE_ATFORK 1
#endif

// Under AddressSanitizer free blocks, and in blocks out the bytes past the requested size, are out of bounds.
#ifdef __has_feature
#if __has_feature(address_sanitizer)
#define FASTRNN_ASAN 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#define FASTRNN_ASAN 1
#endif
#ifdef FASTRNN_ASAN
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

namespace fastrnn {
namespace {

constexpr size_t kAlignment = 128;  // two cache lines: the hardware prefetches them in pairs
constexpr size_t kPage = 4096;
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kMapFrom = size_t{4} << 20;  // blocks from this size on are mapped, in huge pages where allowed
constexpr int kMaxBlocks = 64;                // keeps the search short

struct Block {
  void* data;
  size_t capacity;
};

// Eight sizes per power of two, so that nearby shapes share blocks and no more than an eighth is lost.
size_t capacity_for(size_t bytes) {
  if (bytes > std::numeric_limits<size_t>::max() / 4) throw std::bad_alloc();
  size_t power = kPage;
  while (power <= bytes / 2) power *= 2;
  const size_t step = std::max(kPage, power / 8);
  return (bytes + step - 1) / step * step;
}

// Returns null when there is no memory.
void* allocate(size_t capacity) {
#ifdef __linux__
  if (capacity >= kMapFrom) {
    // Map one huge page more than needed and give back what lies outside the aligned part.
    void* mapped = mmap(nullptr, capacity + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) return nullptr;
    char* start = static_cast<char*>(mapped);
    const size_t before = (kHugePage - reinterpret_cast<uintptr_t>(start) % kHugePage) % kHugePage;
    if (before) munmap(start, before);
    munmap(start + before + capacity, kHugePage - before);
    madvise(start + before, capacity, MADV_HUGEPAGE);  // a wish: without huge pages all works the same
    return start + before;
  }
#endif
  return ::operator new(capacity, std::align_val_t{kAlignment}, std::nothrow);
}

void deallocate(const Block& block) {
  ASAN_UNPOISON_MEMORY_REGION(block.data, block.capacity);
#ifdef __linux__
  if (block.capacity >= kMapFrom) {
    munmap(block.data, block.capacity);
    return;
  }
#endif
  ::operator delete(block.data, std::align_val_t{kAlignment});
}

// For tests: every byte 0xff makes floats NaN, so that a kernel that reads what it did not write shows.
bool fills_blocks() {
#ifdef FASTRNN_POISON
  return true;
#else
  static const bool fills = std::getenv("FASTRNN_POISON") != nullptr;
  return fills;
#endif
}

}  // namespace

struct Cache {
  std::mutex mutex;
  Block blocks[kMaxBlocks];  // free ones, least recently used first
  int count = 0;
  size_t bytes = 0;
  std::vector<const Memory*> leases;  // the live ones

  size_t limit() const {
    size_t most = 0;
    for (const Memory* lease : leases) most = std::max(most, lease->need());
    return most;
  }

  Block remove(int i) {
    const Block block = blocks[i];
    std::copy(blocks + i + 1, blocks + count, blocks + i);
    --count;
    bytes -= block.capacity;
    return block;
  }

  // The smallest block that holds `capacity` and is at most twice as large; the warmest among equals.
  Block take(size_t capacity) {
    int best = -1;
    for (int i = 0; i < count; ++i) {
      const size_t c = blocks[i].capacity;
      if (c >= capacity && c <= 2 * capacity && (best < 0 || c <= blocks[best].capacity)) best = i;
    }
    return best < 0 ? Block{nullptr, 0} : remove(best);
  }

  // Puts the block in, or refuses it.
  bool put(const Block& block) {
    if (count == kMaxBlocks || block.capacity > limit()) return false;
    blocks[count++] = block;
    bytes += block.capacity;
    return true;
  }

  static void account(Memory& lease, size_t capacity) {
    lease.held_ += capacity;
    lease.most_held_ = std::max(lease.most_held_, lease.held_);
  }
  static void discount(Memory& lease, size_t capacity) { lease.held_ -= capacity; }
};

namespace {

// Never destroyed: daemon threads may still run while the process exits. Made when the library is loaded, so that no
// fork can fall into its construction.
Cache& cache = *new Cache;

#ifdef FASTRNN_HAVE_ATFORK
// The lock is held across a fork, so the child finds the cache in order and the lock free.
void lock_cache() { cache.mutex.lock(); }
void unlock_cache() { cache.mutex.unlock(); }
[[maybe_unused]] const int at_fork = pthread_atfork(lock_cache, unlock_cache, unlock_cache);
#endif

// Frees the least recently used blocks until the rest fits, outside the lock, since the system may take its time.
void trim(bool everything) {
  for (;;) {
    Block block;
    {
      std::lock_guard<std::mutex> lock(cache.mutex);
      if (cache.count == 0 || (!everything && cache.bytes <= cache.limit())) return;
      block = cache.remove(0);
    }
    deallocate(block);
  }
}

}  // namespace

Memory::Memory() {
  std::lock_guard<std::mutex> lock(cache.mutex);
  cache.leases.push_back(this);
}

Memory::~Memory() {
  {
    std::lock_guard<std::mutex> lock(cache.mutex);
    auto& leases = cache.leases;
    leases.erase(std::find(leases.begin(), leases.end(), this));
  }
  trim(false);
}

void Memory::note(size_t bytes) {
  std::lock_guard<std::mutex> lock(cache.mutex);
  largest_call_ = std::max(largest_call_, bytes);
}

size_t Memory::need() const {
  if (largest_call_ == 0) return most_held_;
  return std::min(most_held_, largest_call_ + largest_call_ / 8 + 16 * kPage);  // as capacity_for rounds
}

Buffer acquire(size_t bytes, const std::shared_ptr<Memory>& lease) {
  Buffer buffer;
  if (bytes == 0) return buffer;
  Block block;
  {
    const size_t capacity = capacity_for(bytes);
    {
      std::lock_guard<std::mutex> lock(cache.mutex);
      block = cache.take(capacity);
      if (block.data && lease) Cache::account(*lease, block.capacity);
    }
    if (!block.data) {
      block = {allocate(capacity), capacity};
      if (!block.data) {
        release_memory();
        block.data = allocate(capacity);
      }
      if (!block.data) throw std::bad_alloc();
      if (lease) {
        std::lock_guard<std::mutex> lock(cache.mutex);
        Cache::account(*lease, block.capacity);
      }
    }
  }
  ASAN_UNPOISON_MEMORY_REGION(block.data, bytes);
  ASAN_POISON_MEMORY_REGION(static_cast<char*>(block.data) + bytes, block.capacity - bytes);
  if (fills_blocks()) std::memset(block.data, 0xff, bytes);
  buffer.data_ = block.data;
  buffer.size_ = bytes;
  buffer.capacity_ = block.capacity;
  buffer.lease_ = lease;
  return buffer;
}

void Buffer::reset() noexcept {
  if (!data_) return;
  const Block block{std::exchange(data_, nullptr), std::exchange(capacity_, 0)};
  size_ = 0;
  const std::shared_ptr<Memory> lease = std::move(lease_);  // dies last: a dying lease trims the cache
  ASAN_POISON_MEMORY_REGION(block.data, block.capacity);
  bool kept;
  {
    std::lock_guard<std::mutex> lock(cache.mutex);
    if (lease) Cache::discount(*lease, block.capacity);
    kept = cache.put(block);
  }
  if (kept)
    trim(false);
  else
    deallocate(block);
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      capacity_(std::exchange(other.capacity_, 0)),
      lease_(std::move(other.lease_)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  if (this != &other) {
    reset();
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
    capacity_ = std::exchange(other.capacity_, 0);
    lease_ = std::move(other.lease_);
  }
  return *this;
}

void release_memory() { trim(true); }

size_t cached_bytes() {
  std::lock_guard<std::mutex> lock(cache.mutex);
  return cache.bytes;
}

}  // namespace fastrnn
