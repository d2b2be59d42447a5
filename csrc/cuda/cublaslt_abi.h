// What is used of cuBLASLt's C interface, declared by hand, so that building needs neither its headers nor a link. Its
// versions 11 to 13 agree in all of it. Matrices stand by columns there.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastrnn {
namespace cuda {
namespace cublaslt {

constexpr int kFirstMajor = 11, kLastMajor = 13;

// Every function but the version's gives a status. Enumerations and statuses are ints.
constexpr int kSuccess = 0;

enum DataType : int { kR32F = 0, kR64F = 1, kR16F = 2, kR16BF = 14 };
enum ComputeType : int { kCompute32F = 68, kCompute64F = 70, kCompute32FFastTf32 = 77 };
enum Operation : int32_t { kTranspose = 1 };
enum DescAttribute : int { kTransA = 3 };  // int32_t; what is not set is not transposed
enum PreferenceAttribute : int {
  kMaxWorkspaceBytes = 1,    // uint64_t
  kReductionSchemeMask = 3,  // uint32_t
  kMinAlignmentABytes = 5,   // uint32_t; those of B, C and D follow
};
// Parts of a sum over k are added in the type that products are summed in, from the workspace, in a fixed order.
constexpr uint32_t kReduceInComputeType = 2;

struct Algorithm {
  uint64_t opaque[8];
};
struct Heuristic {
  Algorithm algorithm;
  size_t workspace_bytes;
  int status;
  float waves;
  int reserved[4];
};
static_assert(sizeof(Heuristic) == 96);

using Object = void*;  // a handle, the description of a product or of a matrix, a preference
using Stream = void*;

struct Functions {
  size_t (*version)();
  int (*create)(Object* handle);
  int (*desc_create)(Object* desc, int compute_type, int scale_type);
  int (*desc_set)(Object desc, int attribute, const void* value, size_t bytes);
  int (*desc_destroy)(Object desc);
  int (*layout_create)(Object* layout, int type, uint64_t rows, uint64_t columns, int64_t stride);
  int (*layout_destroy)(Object layout);
  int (*preference_create)(Object* preference);
  int (*preference_set)(Object preference, int attribute, const void* value, size_t bytes);
  int (*preference_destroy)(Object preference);
  int (*heuristics)(Object handle, Object desc, Object a, Object b, Object c, Object d, Object preference, int most,
                    Heuristic* found, int* count);
  // d = alpha op(a) op(b) + beta c
  int (*matmul)(Object handle, Object desc, const void* alpha, const void* a, Object a_layout, const void* b,
                Object b_layout, const void* beta, const void* c, Object c_layout, void* d, Object d_layout,
                const Algorithm* algorithm, void* workspace, size_t workspace_bytes, Stream stream);
};

// Calls each(name, function) for all of them.
template <class Each>
void each_function(Functions& f, Each&& each) {
  each("cublasLtGetVersion", f.version);
  each("cublasLtCreate", f.create);
  each("cublasLtMatmulDescCreate", f.desc_create);
  each("cublasLtMatmulDescSetAttribute", f.desc_set);
  each("cublasLtMatmulDescDestroy", f.desc_destroy);
  each("cublasLtMatrixLayoutCreate", f.layout_create);
  each("cublasLtMatrixLayoutDestroy", f.layout_destroy);
  each("cublasLtMatmulPreferenceCreate", f.preference_create);
  each("cublasLtMatmulPreferenceSetAttribute", f.preference_set);
  each("cublasLtMatmulPreferenceDestroy", f.preference_destroy);
  each("cublasLtMatmulAlgoGetHeuristic", f.heuristics);
  each("cublasLtMatmul", f.matmul);
}

}  // namespace cublaslt
}  // namespace cuda
}  // namespace fastrnn
