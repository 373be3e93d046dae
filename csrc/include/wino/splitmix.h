// splitmix64: turns an integer seed and a row number into the row's 64-bit Philox key.
#pragma once

#include "wino/config.h"

namespace wino {

WINO_HD uint64_t splitmix64(uint64_t x) {
  uint64_t z = x + 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

}  // namespace wino
