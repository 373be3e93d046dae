// Products of rows with weights (N, K) as torch.nn.Linear keeps them, panel by panel of weight columns.
#pragma once

#include <sched.h>

#include "cpu/kernels.h"
#include "cpu/threads.h"
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

constexpr int kRegisterRows = Vec::kRegisters == 32 ? 14 : 6;
constexpr int kPanel = 2 * Vec::N;  // columns

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
  memcpy(to, x, n * sizeof(T));
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

// Word k of columns c ... c + Vec::N goes to panel[k][c], or if it is a pair of bfloat16 that are multiplied as floats,
// to panel[2 k][c] and panel[2 k + 1][c]: a transposition, four words and four columns at a time.
template <bool splits>
WINO_HD void transpose_columns(const uint32_t* from, int64_t stride, int64_t n, uint32_t* panel) {
  const auto put = [&](int64_t k, Vec::U word) {
    if (!splits) return Vec::store(panel + k * kPanel, word);
    Vec::F each[2];
    Vec::split_pairs(word, each);
    for (int i = 0; i < 2; ++i) Vec::store(reinterpret_cast<float*>(panel) + (2 * k + i) * kPanel, each[i]);
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

// Rows of K operands as columns of a panel, Vec::N of them; of fewer rows the last columns are undefined.
template <typename T>
void pack_columns(const T* rows, int64_t stride, int64_t number, int64_t K, uint32_t* panel) {
  using A = Operand<T>;
  constexpr int64_t kStretch = 32;  // numbers
  constexpr bool splits = IsBFloat16<T>::value && sizeof(A) == sizeof(float);
  const bool as_it_is = (sizeof(A) == sizeof(T) || splits) && number == Vec::N && K % 2 == 0 && stride % 2 == 0;
  if (as_it_is && reinterpret_cast<uintptr_t>(rows) % sizeof(uint32_t) == 0) {
    constexpr int64_t each = sizeof(uint32_t) / sizeof(T);
    return transpose_columns<splits>(reinterpret_cast<const uint32_t*>(rows), stride / each, K / each, panel);
  }
  uint32_t stretch[Vec::N][kStretch];
  for (int64_t k = 0; k < K; k += kStretch) {
    const int64_t count = K - k < kStretch ? K - k : kStretch;
    for (int64_t c = 0; c < number; ++c) {
      A* to = reinterpret_cast<A*>(stretch[c]);
      store_operands(rows + c * stride + k, count, to);
      pad_row(to, count);
    }
    transpose_columns<false>(stretch[0], kStretch, words<A>(count), panel + words<A>(k) * kPanel);
  }
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

WINO_HD Vec::F multiply_add(const float* a, Vec::F b, Vec::F sum) { return Vec::fma(Vec::splat(*a), b, sum); }
#if defined(WINO_HAS_PAIRS)
WINO_HD Vec::F multiply_add(const BFloat16* a, Vec::F b, Vec::F sum) { return Vec::add_pairs(a, b, sum); }
#endif

// sum[r][c] = row r of a (R, K) times column c of a panel, added to what is there if `adds`; rows are `stride` apart.
template <int R, typename A>
void multiply_rows(const A* a, int64_t stride, const uint32_t* panel, int64_t n, float* sum, int64_t sum_stride,
                   bool adds) {
  constexpr int each = sizeof(uint32_t) / sizeof(A);
  Vec::F total[R][2];
  for (int r = 0; r < R; ++r) total[r][0] = total[r][1] = Vec::splat(0.0f);
  const float* column = reinterpret_cast<const float*>(panel);
  for (int64_t k = 0; k < n; ++k, column += kPanel, a += each) {
    const Vec::F left = Vec::load(column), right = Vec::load(column + Vec::N);
    for (int r = 0; r < R; ++r) {
      total[r][0] = multiply_add(a + r * stride, left, total[r][0]);
      total[r][1] = multiply_add(a + r * stride, right, total[r][1]);
    }
  }
  for (int r = 0; r < R; ++r) {
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

// Cuts rows begin ... end - 1 into runs of nearly the same length, as long as registers allow: f(first, rows).
template <typename Function>
WINO_HD void for_each_run(int64_t begin, int64_t end, const Function& f) {
  const int64_t rows = end - begin, runs = (rows + kRegisterRows - 1) / kRegisterRows;
  for (int64_t i = 0; i < runs; ++i) {
    const int64_t first = begin + rows * i / runs;
    f(first, begin + rows * (i + 1) / runs - first);
  }
}

// The same for any number of rows. A row's sums do not depend on the rows beside it.
template <typename A>
void multiply_panel(const A* a, int64_t rows, int64_t stride, const uint32_t* panel, int64_t K, float* sum,
                    int64_t sum_stride, bool adds = false) {
  for_each_run(0, rows, [&](int64_t first, int64_t number) {
    RowsAtOnce<A, kRegisterRows>::run(number, a + first * stride, stride, panel, words<A>(K), sum + first * sum_stride,
                                      sum_stride, adds);
  });
}

constexpr int kSpins = 4096;  // before a wait gives the core away: another thread may need it to finish its task

// Tasks that all have to be done before any thread goes on. Only threads that run take tasks, so none waits for one
// that never starts.
struct Phase {
  TaskQueue queue;
  int64_t done;

  WINO_MEMBER void finish_task() { __atomic_fetch_add(&done, 1, __ATOMIC_RELEASE); }
  WINO_MEMBER void wait() const {
    for (int spins = 0; __atomic_load_n(&done, __ATOMIC_ACQUIRE) < queue.count; ++spins) {
      spins < kSpins ? Vec::pause() : static_cast<void>(sched_yield());
    }
  }
};

constexpr int64_t kTaskRows = 5 * kRegisterRows;  // at most: they and a panel stay in the L1 and L2 caches

WINO_HD int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// As many tasks as give each thread the same number of them, with at most kTaskRows rows each.
WINO_HD int64_t tasks_of(int64_t rows, int threads) {
  const int64_t rounds = (rows + threads * kTaskRows - 1) / (threads * kTaskRows);
  return rounds * threads < rows ? rounds * threads : rows;
}

// Products of rows with several weights: all threads pack these, then they take tasks, each with memory of its own.
template <typename T, int kWeights>
class PackedProducts {
 public:
  using A = Operand<T>;

  static int64_t bytes(const LinearArgs (&linears)[kWeights], int threads, int64_t thread_bytes) {
    int64_t packed = 0;
    for (const LinearArgs& linear : linears) packed += packed_words<A>(linear.N, linear.K);
    return aligned(packed * static_cast<int64_t>(sizeof(uint32_t))) + threads * thread_bytes;
  }

  PackedProducts(const LinearArgs (&linears)[kWeights], char* memory, int64_t thread_bytes, int64_t tasks)
      : linears_(linears), packing_{}, queue_{tasks, 0}, scratch_(memory + bytes(linears, 0, 0)) {
    thread_bytes_ = thread_bytes;
    uint32_t* next = reinterpret_cast<uint32_t*>(memory);
    for (int i = 0; i < kWeights; ++i) {
      panels_[i] = next;
      next += packed_words<A>(linears[i].N, linears[i].K);
      packing_.queue.count += panels(linears[i].N);
    }
  }

  int64_t tasks() const { return queue_.count; }

  // Panel of columns n ... n + kPanel of a weight, n a multiple of kPanel.
  WINO_MEMBER uint32_t* panel(int weight, int64_t n) const {
    return panels_[weight] + n * words<A>(linears_[weight].K);
  }

  // What each thread does: f(task, its memory) for the tasks it takes.
  template <typename Function>
  void work(const Function& f) {
    for (int64_t task; packing_.queue.take(&task); packing_.finish_task()) pack(task);
    packing_.wait();
    char* scratch = scratch_ + __atomic_fetch_add(&next_thread_, 1, __ATOMIC_RELAXED) * thread_bytes_;
    for (int64_t task; queue_.take(&task);) f(task, scratch);
  }

 private:
  void pack(int64_t task) {
    for (int i = 0; i < kWeights; task -= panels(linears_[i].N), ++i) {
      const LinearArgs& linear = linears_[i];
      if (task >= panels(linear.N)) continue;
      const int64_t n = task * kPanel;
      return pack_panel(static_cast<const T*>(linear.weight), linear.stride, linear.N, linear.K, n, panel(i, n));
    }
  }

  const LinearArgs (&linears_)[kWeights];
  uint32_t* panels_[kWeights];
  Phase packing_;
  TaskQueue queue_;
  char* scratch_;  // of the threads, one after the other
  int64_t thread_bytes_;
  int64_t next_thread_ = 0;
};

WINO_CPU_END
