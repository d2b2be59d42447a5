#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>

#include "cuda/cublaslt.h"
#include "cuda/cublaslt_abi.h"

namespace fastrnn {
namespace cuda {
namespace {

using namespace cublaslt;

// What NVIDIA recommends for the GPUs that want most, sm_90 and later.
constexpr size_t kWorkspaceBytes = 32 << 20;

struct Types {
  DataType number, scale;
  ComputeType compute;
};
Types types_of(BlasNumber number) {
  switch (number) {
    case BlasNumber::float64:
      return {kR64F, kR64F, kCompute64F};
    case BlasNumber::float32:
      return {kR32F, kR32F, kCompute32F};
    case BlasNumber::tf32:
      return {kR32F, kR32F, kCompute32FFastTf32};
    case BlasNumber::float16:
      return {kR16F, kR32F, kCompute32F};
    default:
      return {kR16BF, kR32F, kCompute32F};
  }
}

// 0 or 1 in the type of sums.
const void* factor(BlasNumber number, bool one) {
  static const float floats[] = {0, 1};
  static const double doubles[] = {0, 1};
  return number == BlasNumber::float64 ? static_cast<const void*>(&doubles[one]) : &floats[one];
}

// The largest power of two that divides an address, up to what cuBLASLt makes use of.
uint32_t alignment(const void* p) {
  const auto bits = reinterpret_cast<uintptr_t>(p) | 256;
  return uint32_t(bits & -bits);
}

struct Refused {};  // what cuBLASLt answers to something that is not for it
void expect_success(int status) {
  if (status != kSuccess) throw Refused{};
}

using Owned = std::unique_ptr<void, int (*)(Object)>;
template <class... Parameter, class... Argument>
Owned make(int (*create)(Object*, Parameter...), int (*destroy)(Object), Argument... arguments) {
  Object object = nullptr;
  expect_success(create(&object, arguments...));
  return {object, destroy};
}

// How cuBLASLt does a product. It takes our rows for columns: out^T = op(b) a^T, and only b is to be transposed.
struct Plan {
  Plan(const Functions& f, Object handle, const BlasProduct& p) : Plan(f, types_of(p.number), p) {
    const Owned preference = make(f.preference_create, f.preference_destroy);
    const auto prefer = [&](int attribute, auto value) {
      expect_success(f.preference_set(preference.get(), attribute, &value, sizeof value));
    };
    prefer(kMaxWorkspaceBytes, uint64_t(kWorkspaceBytes));
    prefer(kReductionSchemeMask, kReduceInComputeType);
    int attribute = kMinAlignmentABytes;
    for (const void* matrix : {p.b, p.a, static_cast<const void*>(p.out), static_cast<const void*>(p.out)}) {
      prefer(attribute++, alignment(matrix));
    }
    Heuristic found = {};
    int count = 0;
    expect_success(
        f.heuristics(handle, desc.get(), b.get(), a.get(), out.get(), out.get(), preference.get(), 1, &found, &count));
    if (count < 1 || found.workspace_bytes > kWorkspaceBytes) throw Refused{};
    expect_success(found.status);
    algorithm = found.algorithm;
  }

  Owned desc, a, b, out;
  Algorithm algorithm;

 private:
  Plan(const Functions& f, const Types& types, const BlasProduct& p)
      : desc(make(f.desc_create, f.desc_destroy, types.compute, types.scale)),
        a(make(f.layout_create, f.layout_destroy, types.number, p.k_size, p.rows, p.a_stride)),
        b(make(f.layout_create, f.layout_destroy, types.number, p.k_size, p.columns, p.b_stride)),
        out(make(f.layout_create, f.layout_destroy, types.number, p.columns, p.rows, p.out_stride)) {
    const int32_t transpose = kTranspose;
    expect_success(f.desc_set(desc.get(), kTransA, &transpose, sizeof transpose));
  }
};

class Library {
 public:
  Library(const Functions& functions, int64_t least_work) : f_(functions), least_work_(least_work) {}

  bool takes(int64_t work) const { return work >= least_work_; }

  bool multiply(const BlasProduct& p, cudaStream_t stream) {
    if (!takes(p.rows * p.columns * p.k_size) || !p.workspace) return false;
    const int device = current_device();
    const Key key = {device,     int64_t(p.number), p.rows,         p.columns,      p.k_size,        p.a_stride,
                     p.b_stride, p.out_stride,      alignment(p.a), alignment(p.b), alignment(p.out)};
    Object handle;
    std::shared_ptr<const Plan> plan;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      handle = handle_of(device, stream);
      if (!handle) return false;
      plan = plan_of(key, handle, p);
    }
    if (!plan) return false;
    const int status = call_library([=, f = f_] {
      return f.matmul(handle, plan->desc.get(), factor(p.number, true), p.b, plan->b.get(), p.a, plan->a.get(),
                      factor(p.number, p.add), p.out, plan->out.get(), p.out, plan->out.get(), &plan->algorithm,
                      p.workspace, kWorkspaceBytes, stream);
    });
    if (status == kSuccess) return true;
    std::lock_guard<std::mutex> lock(mutex_);
    plans_[key] = nullptr;  // not tried again
    return false;
  }

 private:
  using Key = std::array<int64_t, 11>;
  static constexpr size_t kKept = 1024;

  // Null: there is none. Making one may allocate, which a capture forbids: one that is the first use goes without.
  Object handle_of(int device, cudaStream_t stream) {
    const auto found = handles_.find(device);
    if (found != handles_.end()) return found->second;
    if (is_capturing(stream)) return nullptr;
    Object handle = nullptr;
    if (f_.create(&handle) != kSuccess) handle = nullptr;
    return handles_[device] = handle;
  }

  // Null: there is none. All of this happens on the host, which a capture allows.
  std::shared_ptr<const Plan> plan_of(const Key& key, Object handle, const BlasProduct& p) {
    const auto found = plans_.find(key);
    if (found != plans_.end()) return found->second;
    if (plans_.size() == kKept) plans_.clear();
    std::shared_ptr<const Plan> plan;
    try {
      plan = std::make_shared<const Plan>(f_, handle, p);
    } catch (Refused) {
    }
    return plans_[key] = plan;
  }

  const Functions f_;
  const int64_t least_work_;
  std::mutex mutex_;
  std::map<int, Object> handles_;  // by device, to which they belong
  std::map<Key, std::shared_ptr<const Plan>> plans_;
};

std::atomic<Library*> library{nullptr};  // never destroyed: at a process's end the driver may be gone
std::atomic<uint64_t> state{0};
std::atomic<int64_t> products{0};

void use(Library* other) {
  library = other;
  state++;
}

}  // namespace

bool blas_multiply(const BlasProduct& product, cudaStream_t stream) {
  Library* const current = library;
  if (!current || !current->multiply(product, stream)) return false;
  products++;
  return true;
}

size_t blas_workspace(int64_t most_work) {
  const Library* const current = library;
  return current && current->takes(most_work) ? kWorkspaceBytes : 0;
}

uint64_t blas_state() { return state; }

int64_t cublaslt_products() { return products; }

size_t load_cublaslt(const std::string& name, bool resident, int64_t least_work) {
  void* const file = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL | (resident ? RTLD_NOLOAD : 0));
  if (!file) {
    const char* const reason = dlerror();
    throw std::runtime_error(reason ? reason : name + ": not in this process");
  }
  Functions functions;
  each_function(functions, [&](const char* symbol, auto& function) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(file, symbol));
    if (!function) throw std::runtime_error(name + ": has no " + symbol);
  });
  const size_t version = functions.version(), major = version / 10000;
  if (major < kFirstMajor || major > kLastMajor) {
    throw std::runtime_error(name + ": is version " + std::to_string(version) + ", known are those of cuBLASLt " +
                             std::to_string(kFirstMajor) + " to " + std::to_string(kLastMajor));
  }
  use(new Library(functions, least_work));
  return version;
}

void unload_cublaslt() { use(nullptr); }

}  // namespace cuda
}  // namespace fastrnn
