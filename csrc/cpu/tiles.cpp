#include "cpu/tiles.h"

#if defined(WINO_HAS_TILES)

WINO_CPU_BEGIN

namespace {

// What LDTILECFG reads.
struct Configuration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  void set(int tile, int64_t rows_of_tile, int64_t words) {
    rows[tile] = static_cast<uint8_t>(rows_of_tile);
    row_bytes[tile] = static_cast<uint16_t>(words * sizeof(uint32_t));
  }
};
static_assert(sizeof(Configuration) == 64, "as the CPU defines it");

// Tiles 0 ... 3: sums; 4 and 5: left and right side of whole steps; 6 and 7: of the words that are left of a row.
struct Shape {
  int64_t rows, rest;  // of the left side; 0: not configured
};
thread_local Shape t_shape;

// To configure takes as long as some products of tiles: only if it has to be.
void configure(int64_t rows, int64_t rest) {
  if (t_shape.rows == rows && (rest == 0 || t_shape.rest == rest)) return;
  if (rest == 0) rest = t_shape.rest;
  Configuration all;
  for (int tile = 0; tile < 4; ++tile) all.set(tile, rows, kTileWords);
  all.set(4, rows, kTileWords);
  all.set(5, kTileRows, kTileWords);
  if (rest > 0) {
    all.set(6, rows, rest);
    all.set(7, rest, kTileWords);
  }
  __asm__ volatile("" : : "r"(&all) : "memory");  // GCC believes that eight bytes of it are read
  _tile_loadconfig(&all);
  t_shape = {rows, rest};
}

// A step of both halves of a panel: the products of tiles of `left` and `right`, added to the sums. The second tile of
// rows begins `second` numbers behind the first.
#define WINO_STEP(left, right)                                             \
  _tile_loadd(left, a, a_bytes);                                           \
  _tile_loadd(right, panel, kTilePanel * sizeof(uint32_t));                \
  _tile_dpbf16ps(0, left, right);                                          \
  if (two) {                                                               \
    _tile_loadd(right, panel + kTileWords, kTilePanel * sizeof(uint32_t)); \
    _tile_dpbf16ps(1, left, right);                                        \
    _tile_loadd(left, a + second, a_bytes);                                \
    _tile_dpbf16ps(3, left, right);                                        \
    _tile_loadd(right, panel, kTilePanel * sizeof(uint32_t));              \
    _tile_dpbf16ps(2, left, right);                                        \
  } else {                                                                 \
    _tile_loadd(right, panel + kTileWords, kTilePanel * sizeof(uint32_t)); \
    _tile_dpbf16ps(1, left, right);                                        \
  }

// Where a product's sides are, where its sums go, their rows' distances, and the row with which the second tile begins.
struct Product {
  const BFloat16* a;
  const uint32_t* panel;
  float* sum;
  int64_t a_bytes, sum_bytes, second_row;
};

template <bool two>
void multiply(const Product& of, int64_t n, Ahead ahead) {
  const BFloat16* a = of.a;
  const uint32_t* panel = of.panel;
  const int64_t a_bytes = of.a_bytes, second = of.second_row * a_bytes / static_cast<int64_t>(sizeof(BFloat16));
  _tile_zero(0);
  _tile_zero(1);
  if (two) _tile_zero(2);
  if (two) _tile_zero(3);
  for (; n >= kTileWords; n -= kTileWords, a += 2 * kTileWords, panel += kTileWords * kTilePanel) {
    const char* line = reinterpret_cast<const char*>(ahead.begin);
    for (int64_t r = 0; r < ahead.rows; ++r, line += a_bytes) _mm_prefetch(line, _MM_HINT_T1);
    ahead.begin += 2 * kTileWords;
    WINO_STEP(4, 5)
  }
  if (n > 0) {
    WINO_STEP(6, 7)
  }
  _tile_stored(0, of.sum, of.sum_bytes);
  _tile_stored(1, of.sum + kTileWords, of.sum_bytes);
  if (!two) return;
  float* behind = of.sum + of.second_row * of.sum_bytes / static_cast<int64_t>(sizeof(float));
  _tile_stored(2, behind, of.sum_bytes);
  _tile_stored(3, behind + kTileWords, of.sum_bytes);
}

#undef WINO_STEP

}  // namespace

Tiles::Tiles() { t_shape = {0, 0}; }

Tiles::~Tiles() {
  if (t_shape.rows > 0) _tile_release();
  t_shape = {0, 0};
}

void multiply_tiles(const BFloat16* a, int64_t rows, int64_t stride, const uint32_t* panel, int64_t n, float* sum,
                    int64_t sum_stride, bool adds, Ahead ahead) {
  // Sums are added behind the products, not before: the chain of additions stays short. And what is computed twice must
  // not be added twice.
  __asm__ volatile("" : : : "memory");  // GCC does not know that loading a tile reads memory
  alignas(64) float fresh[2 * kTileRows * kTilePanel];
  const int64_t a_bytes = stride * static_cast<int64_t>(sizeof(BFloat16));
  const int64_t sum_bytes = (adds ? kTilePanel : sum_stride) * static_cast<int64_t>(sizeof(float));
  configure(rows < kTileRows ? rows : kTileRows, n % kTileWords);
  // A product with fewer rows takes as long: the second tile is full too, and has some rows of the first once more.
  const Product product{a, panel, adds ? fresh : sum, a_bytes, sum_bytes, rows - kTileRows};
  rows > kTileRows ? multiply<true>(product, n, ahead) : multiply<false>(product, n, ahead);
  for (int64_t r = 0; adds && r < rows; ++r, sum += sum_stride) {
    for (int64_t c = 0; c < kTilePanel; c += Vec::N) {
      Vec::store(sum + c, Vec::add(Vec::load(sum + c), Vec::load(fresh + r * kTilePanel + c)));
    }
  }
}

WINO_CPU_END

#endif
