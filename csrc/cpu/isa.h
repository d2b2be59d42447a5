// Which build of the kernels runs: chosen once at import by CPU detection, or by the environment variable FASTRNN_ISA.
#pragma once

#include <string>
#include <vector>

namespace fastrnn {

// avx2 stands for AVX2 + FMA; avx512 for AVX-512 F, BW, DQ and VL on top of that. In order of preference, least first.
enum class Isa { portable, avx2, avx512 };

const char* name(Isa isa);

// Best first. Both always end with portable.
std::vector<Isa> compiled();   // what this binary contains
std::vector<Isa> available();  // what of it this machine, and its operating system, can run

// The ISA in use. The first call reads FASTRNN_ISA, else takes the best available; it throws std::invalid_argument
// where set_current would. The binding calls it at import.
Isa current();

// Throws std::invalid_argument when the name is unknown, or the build or the machine lacks the ISA.
void set_current(const std::string& isa);

}  // namespace fastrnn
