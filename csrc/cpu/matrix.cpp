// The products of matrix.h, compiled once for all operators.
#include "cpu/matrix.h"

WINO_CPU_BEGIN

namespace {

WINO_HD Vec::F multiply_add(const float* a, Vec::F b, Vec::F sum) { return Vec::fma(Vec::splat(*a), b, sum); }
#if defined(WINO_HAS_PAIRS)
WINO_HD Vec::F multiply_add(const BFloat16* a, Vec::F b, Vec::F sum) { return Vec::add_pairs(a, b, sum); }
#endif

// sum[r][c] = row r of a (R, K) times column c of a panel, added to what is there if `adds`; rows are `stride` apart.
template <int R, typename A>
void multiply_rows(const A* a, int64_t stride, const uint32_t* panel, int64_t n, float* sum, int64_t sum_stride,
                   bool adds) {
  constexpr int each = sizeof(uint32_t) / sizeof(A);
  // All of `total` stays in registers only if no loop is left that indexes it: hence unrolled, before GCC decides.
  Vec::F total[R][2];
  static_assert(kRegisterRows <= 14, "the pragmas below");
#pragma GCC unroll 14
  for (int r = 0; r < R; ++r) total[r][0] = total[r][1] = Vec::splat(0.0f);
  const float* column = reinterpret_cast<const float*>(panel);
  for (int64_t k = 0; k < n; ++k, column += kPanel, a += each) {
    const Vec::F left = Vec::load(column), right = Vec::load(column + Vec::N);
#pragma GCC unroll 14
    for (int r = 0; r < R; ++r) {
      total[r][0] = multiply_add(a + r * stride, left, total[r][0]);
      total[r][1] = multiply_add(a + r * stride, right, total[r][1]);
    }
  }
#pragma GCC unroll 14
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      float* to = sum + r * sum_stride + i * Vec::N;
      // Behind the products, not before: the chain of additions stays short, and so does its error.
      Vec::store(to, adds ? Vec::add(Vec::load(to), total[r][i]) : total[r][i]);
    }
  }
}

template <typename A, int R>
struct RowsAtOnce {
  static void run(int64_t rows, const A* a, int64_t stride, const uint32_t* panel, int64_t n, float* sum,
                  int64_t sum_stride, bool adds) {
    if (rows == R) return multiply_rows<R>(a, stride, panel, n, sum, sum_stride, adds);
    RowsAtOnce<A, R - 1>::run(rows, a, stride, panel, n, sum, sum_stride, adds);
  }
};
template <typename A>
struct RowsAtOnce<A, 0> {
  static void run(int64_t, const A*, int64_t, const uint32_t*, int64_t, float*, int64_t, bool) {}
};

}  // namespace

template <typename A>
void multiply_panel(const A* a, int64_t rows, int64_t stride, const uint32_t* panel, int64_t K, float* sum,
                    int64_t sum_stride, bool adds) {
  for_each_part<kRegisterRows>(0, rows, [&](int64_t first, int64_t number) {
    RowsAtOnce<A, kRegisterRows>::run(number, a + first * stride, stride, panel, words<A>(K), sum + first * sum_stride,
                                      sum_stride, adds);
  });
}

template void multiply_panel(const float*, int64_t, int64_t, const uint32_t*, int64_t, float*, int64_t, bool);
#if defined(WINO_HAS_TILES)
template <>
void multiply_panel(const BFloat16* a, int64_t rows, int64_t stride, const uint32_t* panel, int64_t K, float* sum,
                    int64_t sum_stride, bool adds) {
  for_each_run(0, rows, [&](int64_t first, int64_t number) {
    multiply_tiles(a + first * stride, number, stride, panel, words<BFloat16>(K), sum + first * sum_stride, sum_stride,
                   adds);
  });
}

void multiply_in_place(const LinearArgs& weight, int64_t n, const uint32_t* panels, int64_t count, Range rows,
                       float* sums, int64_t sum_stride, int64_t longest) {
  alignas(64) float turned[kPanel * kPanel];  // [columns][rows]
  const auto columns_from = [&](int64_t first) {
    return weight.N <= first ? 0 : weight.N - first < kPanel ? weight.N - first : static_cast<int64_t>(kPanel);
  };
  const int64_t columns = columns_from(n), next = columns_from(n + kPanel), from = next * rows.first / count;
  const int64_t fetched = next * (rows.first + rows.count) / count - from;
  const BFloat16* own = static_cast<const BFloat16*>(weight.weight) + n * weight.stride;
  const uint32_t* panel = panels + rows.first * words<BFloat16>(weight.K);
  int64_t k = 0;
  do {
    const int64_t number = words<BFloat16>(weight.K - k < longest ? weight.K - k : longest);
    const Ahead ahead{own + k + (kPanel + from) * weight.stride, fetched};
    multiply_tiles(own + k, columns, weight.stride, panel + k / 2 * kPanel, number, turned, kPanel, k > 0, ahead);
    k += longest;
  } while (k < weight.K);
  for (int64_t c = 0; c < columns; c += Vec::N) {
    transpose_columns<false>(reinterpret_cast<const uint32_t*>(turned + c * kPanel), kPanel, rows.count,
                             reinterpret_cast<uint32_t*>(sums + c), sum_stride);
  }
}
#elif defined(WINO_HAS_PAIRS)
template void multiply_panel(const BFloat16*, int64_t, int64_t, const uint32_t*, int64_t, float*, int64_t, bool);
#endif

WINO_CPU_END
