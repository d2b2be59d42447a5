// The C++ API of fastrnn: one call runs a whole stack of recurrent layers, forward or backward.
//
// Arrays are C-contiguous and time-major. T seq_len, B batch, I input_size, H hidden_size, P state_size (proj_size, or
// H where there is no projection), L num_layers, D directions, G gates. The caller owns every array named here; the
// library owns the Reserve and its workspaces. Pointers are trusted: whoever calls this checks shapes first.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace fastrnn {

class Memory;  // cpu/memory.h: whose cached buffers a call may use

enum class CellType { lstm, gru, rnn_tanh, rnn_relu };
constexpr int kCellTypes = 4;
enum class Dtype { float32, float64, float16, bfloat16 };  // the last two on GPUs only

struct Problem {
  CellType cell = CellType::lstm;
  Dtype dtype = Dtype::float32;
  int64_t input_size = 0, hidden_size = 0, proj_size = 0, num_layers = 1;
  int directions = 1;
  bool bias = true;

  int64_t state_size() const { return proj_size ? proj_size : hidden_size; }
  int64_t layer_input_size(int64_t layer) const { return layer ? directions * state_size() : input_size; }
  int64_t gates() const { return cell == CellType::lstm ? 4 : cell == CellType::gru ? 3 : 1; }
  bool has_cell_state() const { return cell == CellType::lstm; }
  size_t element_size() const { return dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2; }
};

// One layer and direction. w_ih (G*H, layer input size), w_hh (G*H, P), b_ih and b_hh (G*H) or null, w_hr (P, H) or
// null.
struct Weights {
  const void *w_ih = nullptr, *w_hh = nullptr, *b_ih = nullptr, *b_hh = nullptr, *w_hr = nullptr;
};

// Same shapes as Weights; accumulated into. Null: not wanted.
struct WeightGrads {
  void *w_ih = nullptr, *w_hh = nullptr, *b_ih = nullptr, *b_hh = nullptr, *w_hr = nullptr;
};

struct Batch {
  int64_t seq_len = 0, batch = 0;
  const int64_t* lengths = nullptr;  // (B), each 0..T; null: all T
  const uint8_t* resets = nullptr;   // (T, B); null: none. Only with one direction.
  // With lengths that never rise: x, y and their gradients hold only the rows that exist, step by step, (rows, width).
  bool packed = false;
  // (T, B): the row of x that each reads, 0..inputs - 1; x and dx are then (inputs, I). Null: each has a row of its
  // own. Not with packed.
  const int32_t* index = nullptr;
  int64_t inputs = 0;
};

struct Dropout {
  double p = 0;
  uint64_t seed = 0;
};

struct ForwardArrays {
  const void* x = nullptr;    // (T, B, I), with an index (inputs, I)
  const void* h_0 = nullptr;  // (L*D, B, P) or null: zeros
  const void* c_0 = nullptr;  // (L*D, B, H) or null: zeros. LSTM only, as every c below
  void* y = nullptr;          // (T, B, D*P), zero past a row's end
  void* h_n = nullptr;        // (L*D, B, P)
  void* c_n = nullptr;        // (L*D, B, H)
};

struct BackwardArrays {
  const void* x = nullptr;     // as given to forward
  const void* y = nullptr;     // as forward wrote it
  const void* dy = nullptr;    // (T, B, D*P) or null: zeros
  const void* dh_n = nullptr;  // (L*D, B, P) or null: zeros
  const void* dc_n = nullptr;  // (L*D, B, H) or null: zeros
  void* dx = nullptr;          // of x's shape, or null: not wanted
  void* dh_0 = nullptr;        // (L*D, B, P) or null: not wanted
  void* dc_0 = nullptr;        // (L*D, B, H) or null: not wanted
  bool accumulate = true;      // weight gradients are added to what is there; false: they take its place
};

// What backward needs of a forward pass besides x, y and the weights. Never written to after forward.
class Reserve {
 public:
  virtual ~Reserve() = default;
  virtual void* data() const = 0;
  virtual size_t bytes() const = 0;
  virtual const Problem& problem() const = 0;
  virtual int64_t seq_len() const = 0;
  virtual int64_t batch() const = 0;
  virtual int64_t inputs() const { return -1; }  // rows of x where an index tells which is read; else -1
};

// weights: L*D entries, layer by layer, directions inner. At most max_threads threads are used.
// Returns null unless training.
std::unique_ptr<Reserve> forward(const Problem& problem, const Batch& batch, const std::vector<Weights>& weights,
                                 const ForwardArrays& arrays, const Dropout& dropout, bool training, int max_threads,
                                 const std::shared_ptr<Memory>& memory);

// Writes dx, dh_0, dc_0; adds to grads.
void backward(const Reserve& reserve, const std::vector<Weights>& weights, const BackwardArrays& arrays,
              const std::vector<WeightGrads>& grads, int max_threads, const std::shared_ptr<Memory>& memory);

// One step at a time with weights packed once. Not thread-safe; one direction only.
class Stream {
 public:
  virtual ~Stream() = default;
  virtual const Problem& problem() const = 0;
  virtual int64_t batch() const = 0;
  virtual void step(const void* x, void* y) = 0;             // (B, I) -> (B, P)
  virtual void get_state(void* h, void* c) const = 0;        // (L, B, P), (L, B, H) or null
  virtual void set_state(const void* h, const void* c) = 0;  //
  virtual void reset(const int64_t* rows, int64_t n) = 0;    // rows null: all
  virtual void select(const int64_t* rows, int64_t n) = 0;   // batch becomes n; repeats allowed
};
std::unique_ptr<Stream> make_stream(const Problem& problem, const std::vector<Weights>& weights, int64_t batch,
                                    int max_threads);

// The output layer of a model over V symbols, all rows in one pass:
//   logits = x weight^T + bias;  nats = -log softmax(logits)[target]
// and the gradients of scale * (the sum of all nats).
struct CrossEntropy {
  Dtype dtype = Dtype::float32;
  int64_t rows = 0, input_size = 0, symbols = 0;  // N, I, V
  double scale = 1;
  const void* x = nullptr;           // (N, I)
  const void* weight = nullptr;      // (V, I)
  const void* bias = nullptr;        // (V) or null
  const int32_t* targets = nullptr;  // (N), < V; negative: the row counts for nothing
  void* nats = nullptr;              // (N)
  void* dx = nullptr;                // (N, I) or null: not wanted
  void* dweight = nullptr;           // (V, I) or null
  void* dbias = nullptr;             // (V) or null
  bool accumulate = true;            // dweight and dbias are added to what is there; false: they take its place
  size_t logit_bytes = 0;            // at most, roughly, for the logits of the rows that are taken at a time
};
void cross_entropy(const CrossEntropy& problem, int max_threads, const std::shared_ptr<Memory>& memory);

// The symbols of largest logit, for one call after another with the same weights. For more than a few rows they are
// packed once; otherwise they are read as they stand.
class TopSymbols {
 public:
  virtual ~TopSymbols() = default;
  // Of each of the rows x (N, I) `count` <= V symbols, best first, of equal ones the lower, and the logs of their
  // softmax over all symbols, (N, count). never (V): not 0 for symbols that are not chosen; or null. Where that leaves
  // too few, the rest is symbol 0 of log -inf.
  virtual void find(const void* x, int64_t rows, int64_t count, const uint8_t* never, int32_t* ids,
                    double* log_p) const = 0;
};
// weight (V, I), bias (V) or null: both must stay. rows: of most calls.
std::unique_ptr<TopSymbols> make_top_symbols(Dtype dtype, int64_t symbols, int64_t input_size, const void* weight,
                                             const void* bias, int64_t rows, int max_threads,
                                             const std::shared_ptr<Memory>& memory);

// out (rows, columns) = a (rows, k_size) b (k_size, columns), or added to what is there. Rows of a matrix are `stride`
// numbers apart; a transposed one is given by the rows of what it is the transpose of. out shares no memory with them.
struct Product {
  Dtype dtype = Dtype::float32;
  int64_t rows = 0, columns = 0, k_size = 0;
  const void *a = nullptr, *b = nullptr;
  int64_t a_stride = 0, b_stride = 0;
  bool a_transposed = false, b_transposed = false;
  void* out = nullptr;
  int64_t out_stride = 0;
  bool add = false;
};
void product(const Product& problem, int max_threads);

// A step of an optimizer over whole arrays, in place:
//   multiply  p = scale p
//   sgd       d = scale g + weight_decay p;  v = momentum v + d;  p = p - lr v, nesterov: p - lr (d + momentum v);
//             without v  p = p - lr d
//   adam      p = shrink p;  d = scale g + weight_decay p;  m = beta_1 m + (1 - beta_1) d;
//             v = beta_2 v + (1 - beta_2) d^2;  p = p - lr m / (sqrt(v) / root + eps)
enum class OptimizerRule { multiply, sgd, adam };
struct OptimizerStep {
  OptimizerRule rule = OptimizerRule::sgd;
  double scale = 1, lr = 0, weight_decay = 0, momentum = 0;
  bool nesterov = false;
  double beta_1 = 0, beta_2 = 0, eps = 0, root = 1, shrink = 1;
};
struct OptimizerArrays {  // each of n numbers
  int64_t n = 0;
  void* p = nullptr;
  const void* g = nullptr;
  void* first = nullptr;   // sgd: v or null; adam: m
  void* second = nullptr;  // adam: v
};
void optimize(Dtype dtype, const OptimizerStep& step, const std::vector<OptimizerArrays>& arrays, int max_threads);

// Sum of (g / divisor)^2 in double, over all arrays.
double sum_of_squares(Dtype dtype, const std::vector<OptimizerArrays>& arrays, double divisor, int max_threads);

// out[i] = matrix[ids[i]] and matrix[ids[i]] += rows[i], for n rows; every id is a row of the matrix.
void take_rows(const void* matrix, int64_t row_bytes, const int32_t* ids, int64_t n, void* out, int max_threads);
void add_rows(Dtype dtype, void* matrix, int64_t columns, const int32_t* ids, int64_t n, const void* rows,
              int max_threads);

}  // namespace fastrnn
