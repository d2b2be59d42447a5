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
  void add(const Value&... values) {
    (append(values), ...);
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
  // every call usually stands at one of few places. Where a graph cannot be had, it is done without: what is wrong, if
  // it lasts, is said to whoever launches.
  template <class Enqueue>
  void run(const Key& key, cudaStream_t stream, Enqueue&& enqueue) {
    const bool worth_it = came_often(key);
    try {
      if (worth_it && !launch(key, stream)) {
        keep(key, std::make_unique<Graph>(enqueue));  // others need not wait for that
        if (launch(key, stream)) return;
      } else if (worth_it) {
        return;
      }
    } catch (const std::exception&) {
      forget(key);
    }
    enqueue(stream);
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

  // Makes the key's entry, which becomes the first, if there is none.
  bool came_often(const Key& key) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!find(key)) {
      entries_.push_front({key, 0, nullptr});
      if (entries_.size() > kKept) entries_.pop_back();
    }
    return entries_.front().times++ >= kTimes;
  }
  bool launch(const Key& key, cudaStream_t stream) {
    std::lock_guard<std::mutex> lock(mutex_);  // a graph is launched by one thread at a time
    if (!find(key) || !entries_.front().graph) return false;
    entries_.front().graph->launch(stream);
    launches_++;
    return true;
  }
  void keep(const Key& key, std::unique_ptr<Graph> graph) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (find(key)) entries_.front().graph = std::move(graph);
  }
  void forget(const Key& key) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (find(key)) entries_.pop_front();
  }
  // Whether there is an entry, which becomes the first.
  bool find(const Key& key) {
    for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
      if (!(entry->key == key)) continue;
      entries_.splice(entries_.begin(), entries_, entry);
      return true;
    }
    return false;
  }

  std::mutex mutex_;
  std::list<Entry> entries_;  // the latest first
  int64_t launches_ = 0;
};

}  // namespace cuda
}  // namespace fastrnn
