// The most probable symbols of each row, best first, without keeping its logits.
//
// Threads split the symbols. Each has a short list for every row; a logit is looked at on its own only where one of its
// panel's is larger than the list's last. The lists of all threads then become one.
#pragma once

#include "cpu/logits.h"

namespace fastrnn {
namespace FASTRNN_ISA {

template <class T>
class TopSymbolsPass {
  static constexpr int w = kWidth<T>;

 public:
  TopSymbolsPass(const TopSymbolsArgs& args, Team& team, int tid)
      : a(args),
        team(team),
        tid(tid),
        logits(args, team, tid,
               a.panels ? static_cast<T*>(a.panels) + tid * Logits<T>::kColumns * a.input_size : nullptr) {}

  void run() {
    for (int64_t row = 0; row < a.rows; row += a.chunk_rows) {
      const int64_t n = min(a.chunk_rows, a.rows - row);
      for (int64_t r = 0; r < n; r++) list(tid, r).clear();
      logits.visit(row, n, [&](int64_t p, int64_t r, const Vec<T>* logit, Vec<T> largest) {
        List best = list(tid, r);
        if (any_larger(largest, best.last())) add(p, logit, best);
      });
      team.barrier(tid);
      const Range own = share(n, team, tid);
      for (int64_t r = own.begin; r < own.end; r++) finish(row, r);
      team.barrier(tid);
    }
  }

 private:
  // Logits with their symbols, the largest first; of equal ones that which came first.
  struct List {
    T* logits;
    int32_t* ids;
    int64_t count;

    void clear() {
      for (int64_t i = 0; i < count; i++) {
        logits[i] = -T(__builtin_inf());
        ids[i] = 0;
      }
    }
    T last() const { return logits[count - 1]; }
    void insert(T logit, int32_t id) {  // where it is larger than the last
      int64_t i = count - 1;
      for (; i > 0 && logits[i - 1] < logit; i--) {
        logits[i] = logits[i - 1];
        ids[i] = ids[i - 1];
      }
      logits[i] = logit;
      ids[i] = id;
    }
  };
  List list(int thread, int64_t r) const {
    const int64_t at = (thread * a.chunk_rows + r) * a.count;
    return {static_cast<T*>(a.best) + at, static_cast<int32_t*>(a.best_ids) + at, a.count};
  }

  static FASTRNN_INLINE bool any_larger(Vec<T> x, T bound) {
    const auto mask = x > set1(bound);
    uint64_t words[kVectorBytes / 8], any = 0;
    __builtin_memcpy(words, &mask, sizeof words);
    for (const uint64_t word : words) any |= word;
    return any != 0;
  }

  __attribute__((noinline)) void add(int64_t p, const Vec<T>* logit, List best) const {
    const int64_t first = logits.first_symbol(p), count = logits.panels.columns(p);
    for (int64_t i = 0; i < count; i++) {
      const T value = logit[i / w][int(i % w)];
      if (value > best.last() && !(a.never && a.never[first + i])) best.insert(value, int32_t(first + i));
    }
  }

  void finish(int64_t row, int64_t r) {
    List best = list(0, r);  // whose symbols come before those of the others
    for (int thread = 1; thread < team.size(); thread++) {
      const List other = list(thread, r);
      for (int64_t i = 0; i < a.count && other.logits[i] > best.last(); i++) {
        best.insert(other.logits[i], other.ids[i]);
      }
    }
    const auto softmax = logits.softmax(r);
    for (int64_t i = 0; i < a.count; i++) {
      a.ids[(row + r) * a.count + i] = best.ids[i];
      a.log_p[(row + r) * a.count + i] = -softmax.nats(best.logits[i]);
    }
  }

  const TopSymbolsArgs& a;
  Team& team;
  const int tid;
  Logits<T> logits;
};

template <class T>
void pack_symbols(const LogitArgs& args, void* packed, Team& team, int tid) {
  Logits<T>(args, team, tid, nullptr).pack_all(static_cast<T*>(packed));
}

template <class T>
void top_symbols(const TopSymbolsArgs& args, Team& team, int tid) {
  TopSymbolsPass<T>(args, team, tid).run();
}

}  // namespace FASTRNN_ISA
}  // namespace fastrnn
