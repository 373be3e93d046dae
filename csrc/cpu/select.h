// Which instruction sets this build has and this machine can run, and the one in use.
#pragma once

#include "cpu/kernels.h"

namespace wino {
namespace cpu {

// The operators of the instruction set in use: select_isa's, or from the first call on the widest one.
const Kernels& kernels();
const char* isa();

// Why `name` cannot be used here; the empty string when it can. Changes nothing.
const char* why_not_isa(const char* name);

// The empty string; or, with nothing changed, why `name` cannot be used here, at the moment or at all.
const char* select_isa(const char* name);

}  // namespace cpu
}  // namespace wino
