// Products of bfloat16 on a core's tile registers (AMX): 16 rows of 64 bytes each, of which one instruction multiplies
// two and adds to a third.
#pragma once

#include "cpu/vec.h"

WINO_CPU_BEGIN

constexpr int kTileRows = 16, kTileWords = 16;  // a word: a pair of bfloat16, or a sum
constexpr int kTilePanel = 2 * kTileWords;      // columns that are multiplied together

#if defined(WINO_HAS_TILES)

constexpr bool kHasTiles = true;

// The tile registers of a thread while it works on products; whoever uses them before or after need not know.
struct Tiles {
  Tiles();
  ~Tiles();
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

// Rows to be fetched into the cache meanwhile, as far apart as those that are multiplied and read at the same pace.
struct Ahead {
  const BFloat16* begin;
  int64_t rows;
};

// As multiply_panel of matrix.h, of 1 ... 2 kTileRows rows of n words.
void multiply_tiles(const BFloat16* a, int64_t rows, int64_t stride, const uint32_t* panel, int64_t n, float* sum,
                    int64_t sum_stride, bool adds, Ahead ahead = {nullptr, 0});

#else

constexpr bool kHasTiles = false;

struct Tiles {
  WINO_MEMBER Tiles() {}
  WINO_MEMBER ~Tiles() {}
};

#endif

WINO_CPU_END
