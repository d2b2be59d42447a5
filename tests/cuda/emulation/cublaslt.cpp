// Stands in for cuBLASLt: the same symbols and the same ABI, written down anew, on the memory of the host. It refuses
// whatever the real one would, and whatever a caller should have set and did not.
//
// FASTRNN_FAKE_CUBLASLT: "version N" is what it calls itself; "fail FUNCTION" lets that fail, where FUNCTION is a name
// without its cublasLt; "find nothing" finds no algorithm.
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

#include "cuda/device.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace {

enum Status { success = 0, not_initialized = 1, invalid_value = 7, not_supported = 15 };

std::map<std::string, int64_t>& calls() {
  static std::map<std::string, int64_t> all;
  return all;
}
int64_t alive = 0;  // objects that are not destroyed yet

bool told(const std::string& what) {
  const char* text = std::getenv("FASTRNN_FAKE_CUBLASLT");
  return text && what == text;
}

// Counts a call; whether it is to fail.
bool fails(const char* function) {
  calls()[function]++;
  return told(std::string("fail ") + function);
}

struct Handle {
  int magic = 0x4c54;
};
struct Description {
  int compute, scale;
  int32_t transposed[2] = {0, 0};  // a, b
};
struct Matrix {
  int type;
  uint64_t rows, columns;
  int64_t stride;
  bool operator==(const Matrix& o) const {
    return type == o.type && rows == o.rows && columns == o.columns && stride == o.stride;
  }
};
struct Preference {
  uint64_t workspace = 0;
  uint32_t reductions = 7, alignments[4] = {256, 256, 256, 256};
};

// What stands in the 64 bytes that callers keep.
struct Algorithm {
  uint64_t magic, rows, columns, k, workspace;
  uint32_t alignments[4];
  uint32_t types, unused;
};
static_assert(sizeof(Algorithm) == 64);
constexpr uint64_t kMagic = 0x616c676f72697468;

struct Result {
  Algorithm algorithm;
  size_t workspace;
  int status;
  float waves;
  int reserved[4];
};

size_t size_of(int type) { return type == 0 ? 4 : type == 1 ? 8 : 2; }
float as_tf32(float x) {
  using namespace fastrnn::cuda;
  return bits_float(to_tf32(x) & ~0x1fffu);
}
double number(const void* data, int type, int64_t at) {
  using namespace fastrnn::cuda;
  switch (type) {
    case 0:
      return static_cast<const float*>(data)[at];
    case 1:
      return static_cast<const double*>(data)[at];
    case 2:
      return half_to_float(static_cast<const uint16_t*>(data)[at]);
    default:
      return bits_float(uint32_t(static_cast<const uint16_t*>(data)[at]) << 16);
  }
}
void put(void* data, int type, int64_t at, double x) {
  using namespace fastrnn::cuda;
  switch (type) {
    case 0:
      static_cast<float*>(data)[at] = float(x);
      break;
    case 1:
      static_cast<double*>(data)[at] = x;
      break;
    case 2:
      static_cast<uint16_t*>(data)[at] = float_to_half(float(x));
      break;
    default:
      static_cast<uint16_t*>(data)[at] = float_to_bfloat16(float(x));
  }
}

// Whether the sizes fit together; k is then the inner one.
bool agree(const Description& desc, const Matrix& a, const Matrix& b, const Matrix& c, const Matrix& d, uint64_t& k) {
  const bool ta = desc.transposed[0], tb = desc.transposed[1];
  k = ta ? a.rows : a.columns;
  const bool types = a.type == b.type && a.type == d.type;
  const int sums = d.type == 1 ? 1 : 0;
  const bool computed = d.type == 1   ? desc.compute == 70
                        : d.type == 0 ? desc.compute == 68 || desc.compute == 77
                                      : desc.compute == 68;
  return c == d && types && computed && desc.scale == sums && (tb ? b.columns : b.rows) == k &&
         (ta ? a.columns : a.rows) == d.rows && (tb ? b.rows : b.columns) == d.columns;
}

template <class T, class... Arguments>
int make(const char* function, void** object, Arguments... arguments) {
  if (fails(function)) return not_initialized;
  *object = new T{arguments...};
  alive++;
  return success;
}
template <class T>
int destroy(void* object) {
  delete static_cast<T*>(object);
  alive--;
  return success;
}

// An attribute of `bytes` bytes, each of which has one size only.
template <class T>
int set(T& attribute, const void* value, size_t bytes) {
  if (bytes != sizeof(T)) return invalid_value;
  std::memcpy(&attribute, value, bytes);
  return success;
}

bool aligned(const void* p, uint32_t to) { return reinterpret_cast<uintptr_t>(p) % to == 0; }

}  // namespace

// How often a function was called; of "alive": how many objects are.
EXPORTED int64_t fake_count(const char* what) { return std::string(what) == "alive" ? alive : calls()[what]; }

EXPORTED size_t cublasLtGetVersion() {
  const char* text = std::getenv("FASTRNN_FAKE_CUBLASLT");
  return text && std::strncmp(text, "version ", 8) == 0 ? size_t(std::atoll(text + 8)) : 120904;
}

EXPORTED int cublasLtCreate(void** handle) {
  if (fails("Create")) return not_initialized;
  *handle = new Handle;
  return success;
}

EXPORTED int cublasLtMatmulDescCreate(void** desc, int compute, int scale) {
  return make<Description>("MatmulDescCreate", desc, compute, scale);
}
EXPORTED int cublasLtMatmulDescDestroy(void* desc) { return destroy<Description>(desc); }
EXPORTED int cublasLtMatmulDescSetAttribute(void* desc, int attribute, const void* value, size_t bytes) {
  if (fails("MatmulDescSetAttribute") || attribute < 3 || attribute > 4) return invalid_value;
  return set(static_cast<Description*>(desc)->transposed[attribute - 3], value, bytes);
}

EXPORTED int cublasLtMatrixLayoutCreate(void** layout, int type, uint64_t rows, uint64_t columns, int64_t stride) {
  return make<Matrix>("MatrixLayoutCreate", layout, type, rows, columns, stride);
}
EXPORTED int cublasLtMatrixLayoutDestroy(void* layout) { return destroy<Matrix>(layout); }

EXPORTED int cublasLtMatmulPreferenceCreate(void** preference) {
  return make<Preference>("MatmulPreferenceCreate", preference);
}
EXPORTED int cublasLtMatmulPreferenceDestroy(void* preference) { return destroy<Preference>(preference); }
EXPORTED int cublasLtMatmulPreferenceSetAttribute(void* preference, int attribute, const void* value, size_t bytes) {
  auto& p = *static_cast<Preference*>(preference);
  if (fails("MatmulPreferenceSetAttribute")) return invalid_value;
  if (attribute == 1) return set(p.workspace, value, bytes);
  if (attribute == 3) return set(p.reductions, value, bytes);
  if (attribute >= 5 && attribute <= 8) return set(p.alignments[attribute - 5], value, bytes);
  return invalid_value;
}

EXPORTED int cublasLtMatmulAlgoGetHeuristic(void* handle, void* desc, void* a, void* b, void* c, void* d,
                                            void* preference, int most, Result* results, int* count) {
  if (fails("MatmulAlgoGetHeuristic")) return not_supported;
  const auto &ma = *static_cast<Matrix*>(a), &mb = *static_cast<Matrix*>(b), &md = *static_cast<Matrix*>(d);
  const auto& p = *static_cast<Preference*>(preference);
  uint64_t k;
  if (static_cast<Handle*>(handle)->magic != 0x4c54 || most < 1) return invalid_value;
  if (!agree(*static_cast<Description*>(desc), ma, mb, *static_cast<Matrix*>(c), md, k)) return invalid_value;
  for (const Matrix* m : {&ma, &mb, &md}) {
    if (m->rows == 0 || m->columns == 0 || m->stride < int64_t(m->rows)) return invalid_value;
  }
  // Sums whose order depends on who comes first, or that are rounded in between, are not asked for.
  if (p.reductions & 5) return not_supported;
  *count = 0;
  if (told("find nothing")) return success;
  *results = {{kMagic, md.rows, md.columns, k, p.workspace, {}, uint32_t(md.type), 0}, p.workspace, success, 1.f, {}};
  std::memcpy(results->algorithm.alignments, p.alignments, sizeof p.alignments);
  *count = 1;
  return success;
}

EXPORTED int cublasLtMatmul(void* handle, void* desc, const void* alpha, const void* a, void* a_layout, const void* b,
                            void* b_layout, const void* beta, const void* c, void* c_layout, void* d, void* d_layout,
                            const Algorithm* algorithm, void* workspace, size_t workspace_bytes, void*) {
  if (fails("Matmul") || static_cast<Handle*>(handle)->magic != 0x4c54) return not_supported;
  const auto& operation = *static_cast<Description*>(desc);
  const auto &ma = *static_cast<Matrix*>(a_layout), &mb = *static_cast<Matrix*>(b_layout),
             &mc = *static_cast<Matrix*>(c_layout), &md = *static_cast<Matrix*>(d_layout);
  const bool ta = operation.transposed[0], tb = operation.transposed[1], tf32 = operation.compute == 77;
  uint64_t k;
  if (!agree(operation, ma, mb, mc, md, k) || algorithm->magic != kMagic || algorithm->rows != md.rows ||
      algorithm->columns != md.columns || algorithm->k != k || algorithm->types != uint32_t(md.type) ||
      workspace_bytes < algorithm->workspace || !aligned(workspace, 16)) {
    return invalid_value;
  }
  const void* const matrices[] = {a, b, c, d};
  const Matrix* const layouts[] = {&ma, &mb, &mc, &md};
  for (int i = 0; i < 4; i++) {
    const uint32_t wanted = algorithm->alignments[i];
    if (!aligned(matrices[i], wanted) || !aligned(matrices[i], uint32_t(size_of(layouts[i]->type)))) {
      return invalid_value;
    }
  }
  // All of it is the product's.
  std::memset(workspace, 0xff, 256);
  std::memset(static_cast<char*>(workspace) + algorithm->workspace - 256, 0xff, 256);
  const double alpha_value = number(alpha, operation.scale, 0), beta_value = number(beta, operation.scale, 0);
  const auto factor = [&](const void* data, const Matrix& m, bool transposed, uint64_t row, uint64_t column) {
    const uint64_t r = transposed ? column : row, q = transposed ? row : column;
    const double x = number(data, m.type, int64_t(q) * m.stride + int64_t(r));
    return tf32 ? double(as_tf32(float(x))) : x;
  };
  for (uint64_t column = 0; column < md.columns; column++) {
    for (uint64_t row = 0; row < md.rows; row++) {
      double sum = 0;  // float32's are summed in float32, whose products may be exact
      for (uint64_t i = 0; i < k; i++) {
        sum += factor(a, ma, ta, row, i) * factor(b, mb, tb, i, column);
        if (md.type != 1) sum = float(sum);
      }
      const int64_t at = int64_t(column) * md.stride + int64_t(row);
      put(d, md.type, at, alpha_value * sum + (beta_value != 0 ? beta_value * number(c, mc.type, at) : 0));
    }
  }
  return success;
}
