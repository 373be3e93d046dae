// shadow_trunk on one thread and on several, for the thread sanitizer: prints whether the results are equal.
#include <cstdio>
#include <memory>
#include <random>
#include <vector>

#include "cpu/operators.h"

using namespace wino::cpu;
using namespace wino::cpu::WINO_ISA;

namespace {

constexpr int64_t kB = 5, kL = 19, kR = 7, kShadow = 6, kD = 24, kHeads = 3, kKeyHeads = 1, kWidth = 8, kInner = 20,
                  kLayers = 3;

std::mt19937 g_random(0);

template <typename T>
std::vector<T> random_numbers(int64_t n) {
  std::vector<T> numbers(n);
  std::normal_distribution<float> normal(0.0f, 0.3f);
  for (T& number : numbers) from_float(normal(g_random), &number);
  return numbers;
}

template <typename T>
std::vector<T> run(int dtype, int threads, bool is_packed) {
  g_random.seed(1);
  std::vector<std::vector<T>> kept;
  const auto numbers = [&](int64_t n) {
    kept.push_back(random_numbers<T>(n));
    return static_cast<const void*>(kept.back().data());
  };
  const int64_t sizes[7][2] = {{kHeads * kWidth, kD},
                               {kKeyHeads * kWidth, kD},
                               {kKeyHeads * kWidth, kD},
                               {kD, kHeads * kWidth},
                               {kInner, kD},
                               {kInner, kD},
                               {kD, kInner}};
  std::vector<LayerArgs> layers(kLayers);
  for (LayerArgs& layer : layers) {
    layer.norm = numbers(kD);
    layer.inner_norm = numbers(kD);
    for (int i = 0; i < 7; ++i) {
      layer.linear[i] = {numbers(sizes[i][0] * sizes[i][1]), nullptr, sizes[i][0], sizes[i][1], sizes[i][1]};
    }
  }
  const std::vector<float> table = random_numbers<float>(kB * kL * kWidth);
  std::vector<int64_t> rows(kB * kR), starts(kB, kL - 2 * kShadow);
  for (int64_t i = 0; i < kB * kR; ++i) rows[i] = kL - 1 - i % kR;
  std::unique_ptr<bool[]> visible(new bool[kB * kL]);
  for (int64_t i = 0; i < kB * kL; ++i) visible[i] = i % kL >= i / kL;
  std::vector<T> out(kB * kR * kD);

  TrunkArgs args{};
  args.dtype = dtype;
  args.B = kB;
  args.L = kL;
  args.D = kD;
  args.head_dim = kWidth;
  args.num_layers = kLayers;
  args.layers = layers.data();
  args.x = numbers(kB * kL * kD);
  args.x_batch_stride = kL * kD;
  args.x_row_stride = kD;
  args.cosine = args.sine = table.data();
  args.table_batch_stride = kL * kWidth;
  args.table_row_stride = kWidth;
  args.rows = rows.data();
  args.R = kR;
  args.num_shadow = kShadow;
  args.block_start = starts.data();
  args.visible = visible.get();
  args.norm = numbers(kD);
  args.eps = 1e-5f;
  args.full_precision = true;
  args.out = out.data();
  args.threads = threads;
  const auto aligned_in = [](std::vector<char>& memory) {
    return memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64);
  };
  std::vector<char> packed(packed_trunk_bytes(args) + 64);
  if (is_packed) {
    pack_trunk(args, aligned_in(packed));
    args.packed = aligned_in(packed);
  }
  std::vector<char> memory(shadow_trunk_bytes(args) + 64);
  shadow_trunk(args, aligned_in(memory));
  return out;
}

template <typename T>
bool is_the_same(int dtype) {
  const std::vector<T> alone = run<T>(dtype, 1, false);
  for (int i = 0; i < 24; ++i) {
    const std::vector<T> found = run<T>(dtype, 2 + i % 4, i % 8 >= 4);
    if (memcmp(found.data(), alone.data(), alone.size() * sizeof(T)) != 0) return false;
  }
  return true;
}

}  // namespace

int main() {
  const bool same = is_the_same<float>(kFloat32) && is_the_same<BFloat16>(kBFloat16);
  printf("%s\n", same ? "equal" : "different");
  return 0;
}
