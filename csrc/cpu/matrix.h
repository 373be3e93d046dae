// Products of rows with weights (N, K) as torch.nn.Linear keeps them, panel by panel of weight columns.
#pragma once

#include "cpu/kernels.h"
#include "cpu/stages.h"
#include "cpu/tiles.h"
#include "cpu/vec.h"

WINO_CPU_BEGIN

// What numbers of dtype T are multiplied as: pairs of bfloat16 where the instruction set has such products, else float.
template <typename T>
struct OperandOf {
  using type = float;
};
#if defined(WINO_HAS_PAIRS)
template <>
struct OperandOf<BFloat16> {
  using type = BFloat16;
};
#endif
template <typename T>
using Operand = typename OperandOf<T>::type;

template <typename T>
struct IsBFloat16 {
  static constexpr bool value = false;
};
template <>
struct IsBFloat16<BFloat16> {
  static constexpr bool value = true;
};

constexpr int kRegisterRows = Vec::kRegisters == 32 ? 14 : 6;  // whose sums with a panel the vector registers hold
constexpr int kPanel = 2 * Vec::N;                             // columns
constexpr int kRunRows = kHasTiles ? 2 * kTileRows : kRegisterRows;
static_assert(!kHasTiles || kPanel == kTilePanel, "tiles read what is packed");

// 32-bit words that K numbers take: a pair of bfloat16 shares one.
template <typename A>
WINO_HD int64_t words(int64_t K) {
  constexpr int64_t each = static_cast<int64_t>(sizeof(uint32_t) / sizeof(A));
  return (K + each - 1) / each;
}

// Numbers a row of K operands takes, zeros behind the last included.
template <typename A>
WINO_HD int64_t padded(int64_t K) {
  return words<A>(K) * static_cast<int64_t>(sizeof(uint32_t) / sizeof(A));
}

WINO_HD int64_t panels(int64_t N) { return (N + kPanel - 1) / kPanel; }

// Words of a packed weight (N, K).
template <typename A>
WINO_HD int64_t packed_words(int64_t N, int64_t K) {
  return panels(N) * kPanel * words<A>(K);
}

template <typename T>
WINO_HD void store_operands(const T* x, int64_t n, T* to) {
  constexpr int64_t kTogether = 32;  // a call for each would take longer than to copy them
  int64_t i = 0;
  for (; i + kTogether <= n; i += kTogether) memcpy(to + i, x + i, kTogether * sizeof(T));
  if (i < n) memcpy(to + i, x + i, (n - i) * sizeof(T));
}
template <typename T>
WINO_HD void widen(const T* x, int64_t n, float* to) {
  int64_t i = 0;
  for (; i + Vec::N <= n; i += Vec::N) Vec::store(to + i, Vec::load(x + i));
  for (; i < n; ++i) to[i] = to_float(x[i]);
}
WINO_HD void store_operands(const BFloat16* x, int64_t n, float* to) { widen(x, n, to); }
WINO_HD void store_operands(const Float16* x, int64_t n, float* to) { widen(x, n, to); }

// Zeros behind a row of K operands, up to its padded length.
template <typename A>
WINO_HD void pad_row(A* row, int64_t K) {
  for (int64_t k = K; k < padded<A>(K); ++k) from_float(0.0f, row + k);
}

// Word k of columns c ... c + Vec::N goes to to[k][c], or if it is a pair of bfloat16 that are multiplied as floats,
// to to[2 k][c] and to[2 k + 1][c]: a transposition, four words and four columns at a time.
template <bool splits>
WINO_HD void transpose_columns(const uint32_t* from, int64_t stride, int64_t n, uint32_t* to,
                               int64_t to_stride = kPanel) {
  const auto put = [&](int64_t k, Vec::U word) {
    if (!splits) return Vec::store(to + k * to_stride, word);
    Vec::F each[2];
    Vec::split_pairs(word, each);
    for (int i = 0; i < 2; ++i) Vec::store(reinterpret_cast<float*>(to) + (2 * k + i) * to_stride, each[i]);
  };
  int64_t k = 0;
  for (; k + 4 <= n; k += 4) {
    Vec::U word[4];
    for (int i = 0; i < 4; ++i) word[i] = Vec::load_fours(from + i * stride + k, 4 * stride);
    Vec::transpose4(word);
    for (int i = 0; i < 4; ++i) put(k + i, word[i]);
  }
  for (; k < n; ++k) {
    uint32_t word[Vec::N];
    for (int c = 0; c < Vec::N; ++c) memcpy(word + c, from + c * stride + k, sizeof(uint32_t));
    put(k, Vec::load_fours(word, 4));
  }
}

// Rows of K operands, row(0) and others, as columns of a panel, at most Vec::N; of fewer the last columns are
// undefined.
template <typename T, typename Row>
void pack_any_columns(const Row& row, int64_t number, int64_t K, uint32_t* panel) {
  using A = Operand<T>;
  constexpr int64_t kStretch = 32;  // numbers
  uint32_t stretch[Vec::N][kStretch];
  for (int64_t k = 0; k < K; k += kStretch) {
    const int64_t count = K - k < kStretch ? K - k : kStretch;
    for (int64_t c = 0; c < number; ++c) {
      A* to = reinterpret_cast<A*>(stretch[c]);
      store_operands(row(c) + k, count, to);
      pad_row(to, count);
    }
    transpose_columns<false>(stretch[0], kStretch, words<A>(count), panel + words<A>(k) * kPanel);
  }
}

// The same of rows `stride` apart.
template <typename T>
void pack_columns(const T* rows, int64_t stride, int64_t number, int64_t K, uint32_t* panel) {
  using A = Operand<T>;
  constexpr bool splits = IsBFloat16<T>::value && sizeof(A) == sizeof(float);
  const bool as_it_is = (sizeof(A) == sizeof(T) || splits) && number == Vec::N && K % 2 == 0 && stride % 2 == 0;
  if (as_it_is && reinterpret_cast<uintptr_t>(rows) % sizeof(uint32_t) == 0) {
    constexpr int64_t each = sizeof(uint32_t) / sizeof(T);
    return transpose_columns<splits>(reinterpret_cast<const uint32_t*>(rows), stride / each, K / each, panel);
  }
  pack_any_columns<T>([&](int64_t c) { return rows + c * stride; }, number, K, panel);
}

// The panel of columns n ... n + kPanel of a weight (N, K) with rows `stride` apart: [words][kPanel], undefined where
// the weight ends.
template <typename T>
void pack_panel(const T* weight, int64_t stride, int64_t N, int64_t K, int64_t n, uint32_t* panel) {
  for (int c = 0; c < kPanel && n + c < N; c += Vec::N) {
    const int64_t number = N - n - c < Vec::N ? N - n - c : Vec::N;
    for (int64_t r = n + c + Vec::N; r < n + c + 2 * Vec::N && r < N; ++r) {
      for (int64_t k = 0; k < K; k += 64 / static_cast<int64_t>(sizeof(T))) Vec::prefetch(weight + r * stride + k);
    }
    pack_columns(weight + (n + c) * stride, stride, number, K, panel + c);
  }
}

// Cuts rows begin ... end - 1 into as few runs as there can be of at most `most` rows, of nearly the same length:
// f(first, rows).
template <int most, typename Function>
WINO_HD void for_each_part(int64_t begin, int64_t end, const Function& f) {
  const int64_t rows = end - begin, runs = (rows + most - 1) / most;
  if (runs == 1) return f(begin, rows);
  for (int64_t i = 0; i < runs; ++i) {
    const int64_t first = begin + rows * i / runs;
    f(first, begin + rows * (i + 1) / runs - first);
  }
}

// Cuts rows begin ... end - 1 into runs as long as registers allow: f(first, rows).
template <typename Function>
WINO_HD void for_each_run(int64_t begin, int64_t end, const Function& f) {
  // An odd number of tiles: one of them is a run, full so that the others are no smaller.
  const int64_t rows = end - begin, tiles = (rows + kTileRows - 1) / kTileRows;
  if (kHasTiles && tiles > 1 && tiles % 2 == 1) {
    f(begin, static_cast<int64_t>(kTileRows));
    begin += kTileRows;
  }
  for_each_part<kRunRows>(begin, end, f);
}

// Sums of rows of K operands with a panel, added to what is there if `adds`; rows are `stride` apart. A row's sums do
// not depend on the rows beside it.
template <typename A>
void multiply_panel(const A* a, int64_t rows, int64_t stride, const uint32_t* panel, int64_t K, float* sum,
                    int64_t sum_stride, bool adds = false);
#if defined(WINO_HAS_TILES)
template <>
void multiply_panel(const BFloat16* a, int64_t rows, int64_t stride, const uint32_t* panel, int64_t K, float* sum,
                    int64_t sum_stride, bool adds);
#endif

struct Range {
  int64_t first, count;
};

// Sums of some of `count` rows, which are the columns of panels, with columns n ... n + kPanel of a weight where it
// lies: only on tiles, and with K even. `longest` numbers are summed in one go. The columns behind are fetched
// meanwhile, all of them when all rows have been here.
void multiply_in_place(const LinearArgs& weight, int64_t n, const uint32_t* panels, int64_t count, Range rows,
                       float* sums, int64_t sum_stride, int64_t longest);

constexpr int64_t kTaskRows =
    kRunRows == kRegisterRows ? 5 * kRunRows : 3 * kRunRows;  // at most: they and a panel stay in the L1 and L2 caches

WINO_HD int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// As many tasks as give each thread the same number of them, with at most kTaskRows rows each.
WINO_HD int64_t tasks_of(int64_t rows, int threads) {
  const int64_t rounds = (rows + threads * kTaskRows - 1) / (threads * kTaskRows);
  return rounds * threads < rows ? rounds * threads : rows;
}

// Sequences 0 ... B - 1 in groups of `each`, the last of which may have fewer.
struct Groups {
  int64_t B, each;

  WINO_MEMBER int64_t count() const { return (B + each - 1) / each; }
  WINO_MEMBER int64_t first(int64_t group) const { return group * each; }
  WINO_MEMBER int64_t size(int64_t group) const { return B - first(group) < each ? B - first(group) : each; }

  // Tasks of the largest group if its sequences have `rows` rows; together as many for one thread as for another.
  int64_t tasks_of_rows(int64_t rows, int threads) const {
    int64_t common = count(), rest = threads;  // becomes their greatest common divisor
    while (rest != 0) {
      const int64_t next = common % rest;
      common = rest;
      rest = next;
    }
    return tasks_of(each * rows, count() < threads ? static_cast<int>(threads / common) : 1);
  }
  // The rows of one of a group's tasks, numbered over all sequences; a smaller group has nothing for its last tasks.
  Range rows_of(int64_t group, int64_t task, int64_t tasks, int64_t rows) const {
    const int64_t own = (tasks * size(group) + each - 1) / each, all = size(group) * rows;
    if (task >= own) return {0, 0};
    const int64_t begin = all * task / own;
    return {first(group) * rows + begin, all * (task + 1) / own - begin};
  }
};

// Rows of a task as the left side of products; of weights that are multiplied in place: as the columns of panels.
template <typename A>
struct TaskRows {
  A* rows;
  int64_t stride, count;
  uint32_t* panels;
};

// Weights of several linear layers: packed, panel by panel, or multiplied where they lie, which with few rows is done
// before they would be packed.
template <typename T, int kWeights>
class LayerWeights {
 public:
  using A = Operand<T>;

  static bool in_place(const LinearArgs (&linears)[kWeights], int64_t rows) {
    constexpr int64_t kFewRows = 384;
    for (const LinearArgs& linear : linears) rows = linear.K % 2 == 0 ? rows : kFewRows + 1;  // whole words are read
    return kHasTiles && IsBFloat16<T>::value && rows <= kFewRows;
  }

  static int64_t bytes(const LinearArgs (&linears)[kWeights], bool in_place) {
    int64_t packed = 0;
    for (const LinearArgs& linear : linears) packed += packed_words<A>(linear.N, linear.K);
    return in_place ? 0 : aligned(packed * static_cast<int64_t>(sizeof(uint32_t)));
  }

  LayerWeights(const LinearArgs (&linears)[kWeights], bool in_place, char* memory) : in_place_(in_place) {
    uint32_t* next = reinterpret_cast<uint32_t*>(memory);
    for (int i = 0; i < kWeights; ++i) {
      linears_[i] = linears[i];
      panels_[i] = next;
      next += packed_words<A>(linears[i].N, linears[i].K);
    }
  }

  // Packs all weights that have to be; this object and its memory outlive it.
  Stage packing() const {
    int64_t number = 0;
    for (const LinearArgs& linear : linears_) number += in_place_ ? 0 : panels(linear.N);
    const auto run = [](const void* self, int64_t, int64_t task, char*) {
      static_cast<const LayerWeights*>(self)->pack(task);
    };
    return {1, number, run, this};
  }

  // Makes of rows of K operands what products take.
  void prepare(const TaskRows<A>& of, int64_t K) const {
    for (int64_t i = 0; in_place_ && i < of.count; i += kPanel) {
      pack_panel(of.rows, of.stride, of.count, K, i, of.panels + i * words<A>(K));
    }
  }

  // f(first, rows) for the runs that are multiplied together.
  template <typename Function>
  WINO_MEMBER void for_each_run(int64_t count, const Function& f) const {
    if (!in_place_) return WINO_ISA::for_each_run(0, count, f);
    for (int64_t i = 0; i < count; i += kPanel) f(i, count - i < kPanel ? count - i : static_cast<int64_t>(kPanel));
  }

  // Sums of a run with columns n ... n + kPanel of a weight, n a multiple of kPanel.
  WINO_MEMBER void multiply(int weight, int64_t n, const TaskRows<A>& of, Range run, float* sums,
                            int64_t sum_stride) const {
    const LinearArgs& linear = linears_[weight];
    if constexpr (kHasTiles) {
      if (in_place_) return multiply_in_place(linear, n, of.panels, of.count, run, sums, sum_stride, linear.K);
    }
    const uint32_t* panel = panels_[weight] + n * words<A>(linear.K);
    multiply_panel(of.rows + run.first * of.stride, run.count, of.stride, panel, linear.K, sums, sum_stride);
  }

 private:
  // Panel `number` of those of all weights.
  void pack(int64_t number) const {
    for (int i = 0; i < kWeights; number -= panels(linears_[i].N), ++i) {
      const LinearArgs& linear = linears_[i];
      if (number >= panels(linear.N)) continue;
      const int64_t n = number * kPanel;
      uint32_t* panel = panels_[i] + n * words<A>(linear.K);
      return pack_panel(static_cast<const T*>(linear.weight), linear.stride, linear.N, linear.K, n, panel);
    }
  }

  bool in_place_;
  LinearArgs linears_[kWeights];
  uint32_t* panels_[kWeights];
};

// An operator on its own whose tasks are rows of products: what it needs of memory, and its call.
template <typename Tasks, typename Args>
Args alone(Args args) {
  args.in_place = Tasks::Weights::in_place(args.linear, args.B * args.L);
  return args;
}

template <typename Tasks, typename Args>
int64_t bytes_alone(const Args& given) {
  const Args args = alone<Tasks>(given);
  return Tasks::packed_bytes(args) + args.threads * Tasks::thread_bytes(args);
}

template <typename Tasks, typename Args>
void run_alone(const Args& given, void* memory) {
  if (given.B == 0) return;
  const Args args = alone<Tasks>(given);
  char* scratch = static_cast<char*>(memory);
  const Tasks tasks(args, {args.B, args.B}, scratch);
  Stage stages[2] = {tasks.packing(), tasks.rows()};
  stages[1].needs_all = &stages[0];
  int64_t done[2];
  run_stages(stages, 2, done, args.threads, scratch + tasks.packed_bytes(args), tasks.thread_bytes(args));
}

WINO_CPU_END
