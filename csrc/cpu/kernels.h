// What the engine asks of one ISA's kernels: a layer in one direction, forward or backward, called by every thread of a
// team. Plain data and function pointers only: this header is shared by sources compiled for different ISAs.
//
// Layouts (W lanes; unit block u = units u*W .. u*W+W-1, nb of them; S slots a unit, see cells/; padding lanes are
// zero)
//   gates    per time chunk [nb][chunk rows, padded][S][W]    W_ih x + b, then in the same place what backward needs
//   dgates   one chunk      [nb][chunk rows, padded][S][W]
//   cells    [nb][cell_rows][W]: rows 0..B are c_0 (inference: the running state), then c_t of every row
//   hidden   [rows][nb * W]: o tanh(c) before the projection
//   x, y     [rows][stride]: as the user's arrays
//   inputs   [nb][inputs, padded][S][W]: with an index, what the rows that read the same row of x have in common
// A row is one (t, b) pair. With lengths, rows are packed: at step t only the batch rows still running, longest first.
#pragma once

#include <cstdint>

#include "fastrnn.h"

namespace fastrnn {

class Team;

struct Steps {
  int64_t seq_len, batch, rows;
  const int64_t* count;   // (T): batch rows running at t, never rising
  const int64_t* offset;  // (T): row of (t, 0)
  int64_t chunks;
  const int64_t* chunk_step;  // (chunks + 1): first step of each time chunk
  const int64_t* chunk_base;  // (chunks + 1): padded rows before each chunk
};

struct LayerArgs {
  Steps steps;
  bool reverse;
  int64_t input_size, hidden_size, state_size;
  bool projected;
  Weights weights;

  const void* x;  // (rows, x_stride), with an index (inputs, x_stride)
  int64_t x_stride;
  const int32_t* index;        // (rows): of x; or null
  int64_t inputs;              // -1 without an index
  const uint8_t* inputs_read;  // (inputs): whether the index names it
  void* input_gates;      // with an index: W_ih x + b; backward: sums of gate gradients, and one vector as with dgates
  const void* h_0;        // (B, state_size), rows in the order of the batch as packed
  const uint8_t* resets;  // (rows) or null
  void* h_prev;  // (rows, state_size), inference (2 * B, state_size): h_{t-1} with resets applied; only with resets
  void* gates;
  void* cells;
  int64_t cell_rows;
  void* hidden;
};

// Whether a kernel packs the weights into panels, finds them packed, or reads them as they stand: with few rows, the
// quickest.
enum class Packing { now, done, none };

struct ForwardArgs : LayerArgs {
  bool by_rows;   // threads split the rows of the batch, not the units
  bool training;  // keep gates, cells, hidden of every step
  Packing packing;
  void* y;  // (rows, y_stride)
  int64_t y_stride;
  void *w_ih_panels, *w_hh_panels, *w_hr_panels;  // unused without packing
  void* bias_panels;
};

struct BackwardArgs : LayerArgs {
  Packing packing;  // now or none
  const void* y;
  int64_t y_stride;
  const void* dy;  // (rows, dy_stride) or null
  int64_t dy_stride;
  void* dx;  // as x, or null
  bool add_dx;
  void* dh;  // [state blocks][B][W]: dh_n on entry, dh_0 on return
  bool need_dh_0;
  void* dc;  // [nb][B][W]: dc_n, dc_0
  WeightGrads grads;
  bool add_grads;  // to what is there
  // scratch
  void *w_ih_panels, *w_hh_panels, *w_hr_panels;
  void* dgates;  // [nb][dgates_rows][S][W], of the longest chunk, and one vector that pack_tiles may read
  int64_t dgates_rows;
  void* input_parts;  // with an index, for each thread: [inputs][gates][W]
  void* partial;      // [2][threads][state blocks][B][W]
  void* dhidden;      // projected only: [chunk rows][state blocks * W]: dh_t, and one vector as with dgates
  void* bias_sums;    // [nb][S][W]
  void* columns;      // room for outer_rows rows of x, h and, projected, the cell's own output, each as ColumnPanels
  // Room for outer_rows rows of gate gradients of a few unit blocks, or of dh, for each thread.
  void* outer_tiles;
  int64_t outer_rows;
};

// Products of fewer rows read weights as they stand: they gain less from packed ones than packing takes.
constexpr int64_t kPackedRows = 8;

// Passes of the output layer; see CrossEntropy and TopSymbols in fastrnn.h for the arrays that they name as here.
struct LogitArgs {
  int64_t rows, input_size, symbols;
  const void *x, *weight, *bias;
  // Panels of all symbols, [thread][panel][k][columns], packed earlier; null: each is packed when its turn comes, or,
  // for few rows, the weights are read as they stand.
  const void* packed;
  bool few_rows;
  // scratch
  int64_t chunk_rows;  // taken at a time
  void* running;       // [threads][chunk_rows][2][W]
  void* panels;        // for each thread panels of its own: panels_size, or, without gradients, a single one
};

struct CrossEntropyArgs : LogitArgs {
  double scale;
  const int32_t* targets;
  void *nats, *dx, *dweight, *dbias;
  bool accumulate;
  // scratch
  void* logits;         // [vectors of symbols][chunk_rows][W]; only for gradients
  void* target_logits;  // [chunk_rows], as tops and factors
  void *tops, *factors;
  void* dlogits;   // for each thread dlogits_size
  void* x_panels;  // [chunk_rows], as ColumnPanels
  void* dx_parts;  // [threads][chunk_rows][input_size, padded]; only with several threads
};

struct TopSymbolsArgs : LogitArgs {
  int64_t count;
  const uint8_t* never;
  int32_t* ids;
  double* log_p;
  // scratch
  void* best;      // [threads][chunk_rows][count]: logits, the largest first
  void* best_ids;  // int32, of these
};

// A product of matrices; see Product in fastrnn.h.
constexpr int64_t kProductPiece = 512;  // of its sums, at most, for which there is scratch
struct ProductArgs : Product {
  bool split_rows;  // threads split the rows of out, not its columns: where a is transposed, or columns are few
  // scratch
  void* panels;  // all columns of a piece; columns split: a panel for each thread
  void* tiles;   // where a is transposed, for each thread product_tiles_size of its rows
};

// One call over some arrays; see optimize in fastrnn.h.
struct OptimizerArgs : OptimizerStep {
  const OptimizerArrays* arrays;
  int64_t count;
};

struct CellKernels {
  int slots, x_slots, h_slots;
  void (*forward)(const ForwardArgs&, Team&, int tid);
  void (*backward)(const BackwardArgs&, Team&, int tid);
};

struct Kernels {
  int width;
  int panel_vectors;                                         // at most
  CellKernels cells[kCellTypes];                             // by CellType
  int64_t (*columns_size)(int64_t x, int64_t h, int64_t m);  // elements a row of BackwardArgs::columns
  int64_t (*tiles_size)(int64_t rows);                       // elements a thread of BackwardArgs::outer_tiles
  void (*cross_entropy)(const CrossEntropyArgs&, Team&, int tid);
  void (*pack_symbols)(const LogitArgs&, void* packed, Team&, int tid);
  void (*top_symbols)(const TopSymbolsArgs&, Team&, int tid);
  int64_t (*panels_size)(int64_t input_size);  // elements a thread of CrossEntropyArgs::panels
  int64_t (*dlogits_size)(int64_t rows);       // and of CrossEntropyArgs::dlogits
  void (*product)(const ProductArgs&, Team&, int tid);
  int64_t (*product_tiles_size)(int64_t rows, int64_t k_size);  // elements
  void (*optimize)(const OptimizerArgs&, Team&, int tid);
  double (*sum_of_squares)(const void* data, int64_t n, double divisor);
  int64_t (*fma_chains)(int64_t rounds, void* sink);  // returns the operations done
  void (*read_once)(const void* data, int64_t bytes, void* sink);
};

// By Dtype. Those not compiled in do not exist.
extern const Kernels kKernelsPortable[2];
extern const Kernels kKernelsAvx2[2];
extern const Kernels kKernelsAvx512[2];

// Thread tid's share of n things.
__attribute__((always_inline)) inline int64_t share_begin(int64_t n, int tid, int threads) { return n * tid / threads; }

}  // namespace fastrnn
