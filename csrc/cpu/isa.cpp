#include "cpu/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace fastrnn {
namespace {

constexpr Isa kBestFirst[] = {Isa::avx512, Isa::avx2, Isa::portable};

bool is_compiled(Isa isa) {
  switch (isa) {
#ifdef FASTRNN_HAVE_AVX512
    case Isa::avx512:
      return true;
#endif
#ifdef FASTRNN_HAVE_AVX2
    case Isa::avx2:
      return true;
#endif
    case Isa::portable:
      return true;
    default:
      return false;
  }
}

// The compiler's builtins read CPUID and also XCR0: whether the operating system saves the wide registers.
bool machine_has(Isa isa) {
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (isa == Isa::avx2) return avx2;
  if (isa == Isa::avx512) return avx2 && avx512;
#endif
  return isa == Isa::portable;
}

std::string join(const std::vector<Isa>& isas) {
  std::string text;
  for (Isa isa : isas) text += (text.empty() ? "" : ", ") + std::string(name(isa));
  return text;
}

// source: where the name came from, for the message.
Isa parse(const std::string& source, const std::string& text) {
  for (Isa isa : kBestFirst) {
    if (text != name(isa)) continue;
    if (!is_compiled(isa))
      throw std::invalid_argument(source + ": this build of fastrnn has no " + text +
                                  " kernels; available here: " + join(available()));
    if (!machine_has(isa))
      throw std::invalid_argument(source + ": this machine lacks " + text + "; available here: " + join(available()));
    return isa;
  }
  throw std::invalid_argument(source + ": unknown ISA '" + text + "'; available here: " + join(available()));
}

Isa initial() {
  const char* text = std::getenv("FASTRNN_ISA");
  return text && *text ? parse("FASTRNN_ISA", text) : available().front();
}

std::atomic<Isa>& in_use() {
  static std::atomic<Isa> isa{initial()};
  return isa;
}

}  // namespace

const char* name(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "portable";
  }
}

std::vector<Isa> compiled() {
  std::vector<Isa> isas;
  for (Isa isa : kBestFirst)
    if (is_compiled(isa)) isas.push_back(isa);
  return isas;
}

std::vector<Isa> available() {
  std::vector<Isa> isas;
  for (Isa isa : compiled())
    if (machine_has(isa)) isas.push_back(isa);
  return isas;
}

Isa current() { return in_use().load(std::memory_order_relaxed); }

void set_current(const std::string& isa) { in_use().store(parse("set_isa", isa), std::memory_order_relaxed); }

}  // namespace fastrnn
