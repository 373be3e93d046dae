// multiply_tiles against float64, its sides at the end of memory that may be read; prints "right" if all is.
#include "cpu/tiles.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

using namespace wino::cpu::WINO_ISA;

namespace {

std::mt19937 g_random(0);

int64_t any(int64_t first, int64_t last) { return std::uniform_int_distribution<int64_t>(first, last)(g_random); }

// Random numbers with a page behind the last that nobody may touch.
class AtTheEnd {
 public:
  explicit AtTheEnd(int64_t numbers) : size_((numbers * 2 + page() - 1) / page() * page()) {
    pages_ =
        static_cast<char*>(mmap(nullptr, size_ + page(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (mprotect(pages_ + size_, page(), PROT_NONE) != 0) abort();
    begin_ = reinterpret_cast<BFloat16*>(pages_ + size_ - numbers * 2);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < numbers; ++i) from_float(normal(g_random), begin_ + i);
  }
  ~AtTheEnd() { munmap(pages_, size_ + page()); }
  const BFloat16* begin() const { return begin_; }

 private:
  static int64_t page() { return sysconf(_SC_PAGESIZE); }

  int64_t size_;
  char* pages_;
  BFloat16* begin_;
};

bool is_right(int64_t rows, int64_t words, int64_t stride, int64_t sum_stride, bool adds) {
  const AtTheEnd a((rows - 1) * stride + 2 * words), panel(words * kTilePanel * 2);
  const auto* columns = reinterpret_cast<const uint32_t*>(panel.begin());
  const int64_t before = any(0, 40), size = before + rows * sum_stride + 40;
  std::vector<float> sums(size), was(size);
  for (int64_t i = 0; i < size; ++i) sums[i] = was[i] = static_cast<float>(any(-9, 9));
  multiply_tiles(a.begin(), rows, stride, columns, words, sums.data() + before, sum_stride, adds,
                 {a.begin(), any(0, 32)});
  for (int64_t i = 0; i < size; ++i) {
    const int64_t row = i < before ? rows : (i - before) / sum_stride,
                  column = i < before ? 0 : (i - before) % sum_stride;
    double exact = was[i], most = 0.0;
    if (row < rows && column < kTilePanel) {
      if (!adds) exact = 0.0;
      for (int64_t k = 0; k < 2 * words; ++k) {
        const double each = static_cast<double>(to_float(a.begin()[row * stride + k])) *
                            to_float(panel.begin()[(k / 2 * kTilePanel + column) * 2 + k % 2]);
        exact += each;
        most += std::fabs(each);
      }
    }
    if (std::fabs(sums[i] - exact) <= 1e-6 * (most + std::fabs(exact))) continue;
    printf("%lld rows, %lld words, strides %lld and %lld, adds %d: row %lld, column %lld is %g, not %g\n",
           static_cast<long long>(rows), static_cast<long long>(words), static_cast<long long>(stride),
           static_cast<long long>(sum_stride), adds, static_cast<long long>(row), static_cast<long long>(column),
           sums[i], exact);
    return false;
  }
  return true;
}

}  // namespace

int main() {
#if !defined(WINO_TILES_ARE_EMULATED) && defined(SYS_arch_prctl)
  syscall(SYS_arch_prctl, 0x1023, 18);
#endif
  const int64_t words[] = {1, 2, 15, 16, 17, 31, 32, 53, 96};
  for (int round = 0; round < 40; ++round) {  // shapes after shapes: what is configured for one is there at the next
    const Tiles tiles;
    for (int64_t i = 0; i < 30; ++i) {
      const int64_t n = words[any(0, 8)];
      if (!is_right(any(1, 2 * kTileRows), n, 2 * n + any(0, 5), kTilePanel + any(0, 3) * 16, any(0, 1) == 1)) return 1;
    }
  }
  puts("right");
}
