// Which instruction sets this build has and this machine can run, and the one in use.
#pragma once

#include "cpu/kernels.h"

namespace wino {
namespace cpu {

// The operators of the instruction set in use: the widest one, until select_isa chooses another.
const Kernels& kernels();
const char* isa();

// Why `name` cannot be used here; the empty string when it can.
const char* why_not_isa(const char* name);

// False, with nothing changed, when `name` cannot be used here.
bool select_isa(const char* name);

}  // namespace cpu
}  // namespace wino
