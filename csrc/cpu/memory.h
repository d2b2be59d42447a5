// Reuse of reserves and workspaces between calls: faulting in fresh pages costs up to a third of a training step.
//
// One process-wide cache of free blocks, bounded by the largest live layer: a layer holds a lease (Memory), and the
// cache keeps no more than the largest need among the live leases, hence nothing when there is none.
#pragma once

#include <cstddef>
#include <memory>

namespace fastrnn {

// A layer's lease on the cache, held through a shared_ptr. When it dies the cache shrinks to what the others need.
class Memory {
 public:
  Memory();
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  // Tells the bytes that one call holds at once (its reserve and its workspaces together).
  void note(size_t bytes);

 private:
  friend struct Cache;
  // What of this layer's memory is worth keeping. Normally that is the most it ever held at once; with many tapes open
  // it is no more than one call's need, or a burst of tapes would stay in memory for as long as the layer lives.
  size_t need() const;

  size_t held_ = 0;  // capacity of the blocks out now; these three are guarded by the cache's lock
  size_t most_held_ = 0;
  size_t largest_call_ = 0;  // 0: never noted
};

// Uninitialised memory, aligned to 128 bytes. Goes back to the cache on destruction.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer() { reset(); }

  void* data() const { return data_; }
  size_t size() const { return size_; }  // as requested
  void reset() noexcept;                 // gives the memory back now

 private:
  friend Buffer acquire(size_t bytes, const std::shared_ptr<Memory>& lease);

  void* data_ = nullptr;
  size_t size_ = 0;
  size_t capacity_ = 0;
  std::shared_ptr<Memory> lease_;
};

// Takes a block from the cache or allocates one; bytes = 0 gives an empty Buffer. Without a lease the memory does not
// count as anyone's need. Throws std::bad_alloc.
Buffer acquire(size_t bytes, const std::shared_ptr<Memory>& lease);

void release_memory();  // frees all cached blocks; memory in use is not touched
size_t cached_bytes();

}  // namespace fastrnn
