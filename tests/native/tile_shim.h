// The CPU's tile instructions in plain C++ (Intel's manual, volume 2: LDTILECFG, TILELOADD, TDPBF16PS, TILESTORED), for
// machines without them. What the CPU would refuse ends the program.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#define WINO_HAS_TILES 1
#define WINO_TILES_ARE_EMULATED 1
#define _MM_HINT_T1 2
#define _mm_prefetch(address, hint) static_cast<void>(address)
#define _tile_loadconfig(from) tile_shim::load_config(from)
#define _tile_release() tile_shim::release()
#define _tile_zero(to) tile_shim::zero(to)
#define _tile_loadd(to, from, stride) tile_shim::load(to, from, stride)
#define _tile_stored(from, to, stride) tile_shim::store(from, to, stride)
#define _tile_dpbf16ps(to, left, right) tile_shim::multiply(to, left, right)

namespace tile_shim {

struct Tile {
  int rows = 0, bytes = 0;
  unsigned char data[16][64] = {};
};

inline thread_local Tile tiles[8];

inline void require(bool holds, const char* what) {
  if (holds) return;
  fprintf(stderr, "%s\n", what);
  abort();
}

inline Tile& tile(int number) {
  require(tiles[number].rows > 0 && tiles[number].bytes > 0, "a tile that is not configured");
  return tiles[number];
}

inline void release() {
  for (Tile& each : tiles) each = Tile();
}

inline void load_config(const void* from) {
  unsigned char all[64];
  memcpy(all, from, sizeof(all));
  require(all[0] == 1 && all[1] == 0, "an unknown palette");
  for (int i = 2; i < 64; ++i) {
    const bool reserved = i < 16 || (i >= 32 && i < 48) || i >= 56;
    require(!reserved || all[i] == 0, "something reserved is not zero");
  }
  release();
  for (int i = 0; i < 8; ++i) {
    uint16_t bytes;
    memcpy(&bytes, all + 16 + 2 * i, sizeof(bytes));
    require(bytes <= 64 && bytes % 4 == 0 && all[48 + i] <= 16, "a tile that is too large");
    require((bytes == 0) == (all[48 + i] == 0), "a tile without rows or columns");
    tiles[i].rows = all[48 + i];
    tiles[i].bytes = bytes;
  }
}

inline void zero(int to) { memset(tile(to).data, 0, sizeof(Tile::data)); }

inline void load(int to, const void* from, int64_t stride) {
  zero(to);
  for (int r = 0; r < tiles[to].rows; ++r) {
    memcpy(tiles[to].data[r], static_cast<const char*>(from) + r * stride, tiles[to].bytes);
  }
}

inline void store(int from, void* to, int64_t stride) {
  const Tile& own = tile(from);
  for (int r = 0; r < own.rows; ++r) memcpy(static_cast<char*>(to) + r * stride, own.data[r], own.bytes);
}

inline float number(const Tile& of, int row, int i) {
  uint16_t half;
  memcpy(&half, of.data[row] + 2 * i, sizeof(half));
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

inline void multiply(int to, int left, int right) {
  Tile& sums = tile(to);
  const Tile &a = tile(left), &b = tile(right);
  require(a.rows == sums.rows && b.bytes == sums.bytes && b.rows == a.bytes / 4, "tiles that do not fit");
  for (int m = 0; m < sums.rows; ++m) {
    for (int n = 0; n < sums.bytes / 4; ++n) {
      float each[2] = {0.0f, 0.0f}, sum;
      for (int k = 0; k < b.rows; ++k) {
        for (int i = 0; i < 2; ++i) each[i] += number(a, m, 2 * k + i) * number(b, k, 2 * n + i);
      }
      memcpy(&sum, sums.data[m] + 4 * n, sizeof(sum));
      sum += each[0] + each[1];
      memcpy(sums.data[m] + 4 * n, &sum, sizeof(sum));
    }
  }
}

}  // namespace tile_shim
