// Calls that come again, launched at once: a call of the general path is hundreds of launches, and what the host spends
// on each is more than a GPU does on a small step.
#pragma once

#include <exception>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <type_traits>

#include "cuda/device.h"

namespace fastrnn {
namespace cuda {

// All that a call's launches depend on, addresses among it.
class Key {
 public:
  template <class... Value>
  Key& add(const Value&... values) {
    (append(values), ...);
    return *this;
  }
  bool operator==(const Key& other) const { return bytes_ == other.bytes_; }

 private:
  template <class Value>
  void append(const Value& value) {
    static_assert(std::is_scalar_v<Value>);  // structs have gaps
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  std::string bytes_;
};

class Graphs {
 public:
  // Never destroyed: at a process's end the driver may be gone.
  static Graphs& instance() {
    static Graphs& graphs = *new Graphs;
    return graphs;
  }

  // Calls enqueue(stream), or what it does as a graph if the call has come before. Memory that is allocated anew for
  // every call usually stands at one of few places.
  template <class Enqueue>
  void run(const Key& key, cudaStream_t stream, Enqueue&& enqueue) {
    std::unique_lock<std::mutex> lock(mutex_);
    auto entry = entries_.begin();
    while (entry != entries_.end() && !(entry->key == key)) ++entry;
    if (entry == entries_.end()) {
      entries_.push_front({key, 0, nullptr});
    } else {
      entries_.splice(entries_.begin(), entries_, entry);
    }
    Entry& latest = entries_.front();
    if (entries_.size() > kKept) entries_.pop_back();
    if (latest.times++ < kTimes) {
      lock.unlock();
      return enqueue(stream);
    }
    try {
      if (!latest.graph) latest.graph = std::make_unique<Graph>(enqueue);
    } catch (const std::exception&) {  // what is wrong, if it lasts, is said to whoever launches
      latest.times = 0;
      lock.unlock();
      return enqueue(stream);
    }
    latest.graph->launch(stream);
    launches_++;
  }

  void release() {
    std::lock_guard<std::mutex> lock(mutex_);
    entries_.clear();
  }
  int64_t launches() {
    std::lock_guard<std::mutex> lock(mutex_);
    return launches_;
  }

 private:
  struct Entry {
    Key key;
    int times;
    std::unique_ptr<Graph> graph;
  };
  static constexpr size_t kKept = 32;
  static constexpr int kTimes = 2;  // one by one; making a graph takes longer than that

  std::mutex mutex_;
  std::list<Entry> entries_;  // the latest first
  int64_t launches_ = 0;
};

}  // namespace cuda
}  // namespace fastrnn
