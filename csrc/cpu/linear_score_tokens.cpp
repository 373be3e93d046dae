// The LM head and the scores of its logits: each tile of logits is folded into the rows' running state while it is in
// cache. Panels of the weight are packed as they come, to meet all rows; on tile registers the rows are packed, once,
// and the weight is multiplied where it lies.
#include "cpu/operators.h"
#include "cpu/reduce.h"
#include "cpu/row_math.h"
#include "cpu/threads.h"

WINO_CPU_BEGIN

namespace {

constexpr int64_t kTile = 256;                   // columns whose logits are alive, of the rows of a task
constexpr int64_t kTileStride = kTile + Vec::N;  // rows a power of two apart would share few sets of the L1 cache
constexpr int64_t kPartWords = 4096 / kPanel;    // of a column, multiplied at a time: a panel of them is half of L1
constexpr int64_t kLongest = 4096;               // numbers of a row that are multiplied in place in one go
constexpr int64_t kGroupRows = 128;              // rows of a task, at most
constexpr int64_t kMostOfThreads = 8 << 20;      // bytes of all threads together
constexpr int64_t kStretch = 16 * kTile;         // columns of a task, at least
constexpr int64_t kMostStretches = 64;
constexpr int64_t kMostRows = 1024;         // whose partial results are alive
constexpr int64_t kMostGathered = 4 << 20;  // bytes of rows

// Partial result of a row: of one stretch of columns.
struct Score {
  double rest;
  int64_t best_id;
  float max, best, given, best_logit;
};

// Whether the weight is multiplied where it lies.
WINO_HD bool multiplies_in_place(const HeadArgs& a) {
  return kHasTiles && a.dtype == kBFloat16 && a.head.K % 2 == 0;  // whole words: nothing behind a row is read
}

WINO_HD int64_t bounded(int64_t rows, int64_t least, int64_t most) {
  return rows < least ? least : rows < most ? rows : most;
}

WINO_HD int64_t stretch_of(int64_t V) {
  const int64_t tiles = (V + kMostStretches * kTile - 1) / (kMostStretches * kTile);
  return tiles * kTile > kStretch ? tiles * kTile : kStretch;
}

// Where a call's memory lies.
template <typename T>
struct Layout {
  using A = Operand<T>;
  int64_t stride;                     // of gathered rows
  int64_t at_once, group, run, unit;  // rows: alive, of a task, worth a task, and that stay together
  int64_t stretch, stretches;
  int64_t wanted, gathered, scores, threads, thread_bytes, bytes;  // offsets, except for the last two

  explicit Layout(const HeadArgs& a) {
    const int64_t size = sizeof(A);
    stride = padded<A>(a.head.K) + 64 / size;  // not a power of two
    unit = multiplies_in_place(a) ? kPanel : 1;
    run = multiplies_in_place(a) ? kRunRows : kRegisterRows;
    at_once = bounded(kMostGathered / (stride * size), run, kMostRows) / unit * unit;
    at_once = at_once < a.rows ? at_once : a.rows;
    stretch = stretch_of(a.head.N);
    stretches = (a.head.N + stretch - 1) / stretch;
    wanted = 0;
    gathered = aligned(at_once * static_cast<int64_t>(sizeof(int64_t)));
    scores = gathered + aligned((at_once + unit - 1) / unit * unit * stride * size);
    threads = scores + aligned(at_once * stretches * static_cast<int64_t>(sizeof(Score)));
    const int64_t panel_bytes = kPartWords * kPanel * static_cast<int64_t>(sizeof(uint32_t));
    const int64_t row_bytes = kTileStride * static_cast<int64_t>(sizeof(float));
    group = bounded((kMostOfThreads / a.threads - panel_bytes) / row_bytes, run, kGroupRows) / unit * unit;
    thread_bytes = panel_bytes + group * row_bytes;
    bytes = threads + a.threads * thread_bytes;
  }
};

template <typename T>
struct Shared {
  const HeadArgs& args;
  Layout<T> layout;
  const int64_t* wanted;  // the rows that are scored now
  int64_t rows, groups;
  Operand<T>* in;  // these rows, or panels of which they are the columns
  Score* scores;   // [stretches, rows]
  char* scratch;
  int64_t next_thread;
  TaskQueue queue;
};

template <typename Rounding, typename T>
WINO_HD void round_logits(float* x, const T* bias, int64_t n) {
  // Without a bias whole vectors: what is behind the last logit is of no account.
  const int64_t end = bias == nullptr ? (n + Vec::N - 1) / Vec::N * Vec::N : n;
  int64_t i = for_vectors(end, [&](auto count, int64_t first) {
    Vec::F logits[count.n];
    load(x + first, logits);
    for (int k = 0; k < count.n && bias != nullptr; ++k) {
      logits[k] = Vec::add(logits[k], Vec::load(bias + first + k * Vec::N));
    }
    Round<Rounding>::all(logits);
    store(logits, x + first);
  });
  for (; i < n; ++i) x[i] = Round<Rounding>::one(x[i] + to_float(bias[i]));
}

// Sums of one row become logits: n of them, then -inf up to whole steps of the reduction.
template <typename T>
WINO_HD void finish_logits(const HeadArgs& a, int64_t first_id, int64_t n, int64_t end, float* x) {
  const T* bias = bias_of<T>(a.head, first_id);
  switch (a.round_to) {
    case kFloat32:
      if (bias != nullptr) round_logits<float>(x, bias, n);
      break;
    case kBFloat16:
      round_logits<BFloat16>(x, bias, n);
      break;
    default:
      round_logits<Float16>(x, bias, n);
  }
  for (int64_t i = n; i < end; ++i) x[i] = -INFINITY;
}

WINO_HD void fold(const HeadArgs& a, int64_t r, int64_t first_id, const float* x, int64_t n, Score& score) {
  const int64_t candidate = a.candidate_ids[r];
  const Draw draw = draw_of(a.temperature, a.seed, r);
  RowState row{{score.max, score.rest}, {score.best, score.best_id}};
  reduce_stretch(x, n, first_id, candidate == kDraft ? &draw : nullptr, row);
  if (row.best.id != score.best_id) score.best_logit = x[row.best.id - first_id];
  if (candidate >= first_id && candidate < first_id + n) score.given = x[candidate - first_id];
  if (candidate == kDraft && first_id == 0) score.given = x[0];  // drawn if all noise is -inf
  score = {row.softmax.rest, row.best.id, row.softmax.max, row.best.value, score.given, score.best_logit};
}

// A part of a panel: numbers of some rows of the weight.
template <typename T>
struct Part {
  const T* begin;
  int64_t stride, rows, numbers;

  Part(const LinearArgs& head, int64_t n, int64_t k, int64_t most)
      : begin(static_cast<const T*>(head.weight) + n * head.stride + k),
        stride(head.stride),
        rows(n >= head.N           ? 0
             : head.N - n < kPanel ? head.N - n
                                   : kPanel),
        numbers(head.K - k < most ? head.K - k : most) {}

  // Share i ... j - 1 of `all`.
  void prefetch(int64_t i, int64_t j, int64_t all) const {
    for (int64_t r = rows * i / all; r < rows * j / all; ++r) {
      for (int64_t k = 0; k < numbers; k += 64 / static_cast<int64_t>(sizeof(T))) Vec::prefetch(begin + r * stride + k);
    }
  }
};

// Sums of rows first ... first + count with columns begin ... end of a tile.
template <typename T>
void multiply_packed(const Shared<T>& shared, int64_t begin, int64_t end, int64_t first, int64_t count, uint32_t* panel,
                     float* sums) {
  constexpr int64_t kPart = kPartWords * static_cast<int64_t>(sizeof(uint32_t) / sizeof(Operand<T>));
  const LinearArgs& head = shared.args.head;
  const int64_t stride = shared.layout.stride;
  const Operand<T>* in = shared.in + first * stride;
  for (int64_t n = begin; n < end; n += kPanel, sums += kPanel) {
    for (int64_t k = 0; k < head.K; k += kPart) {
      const bool ends = k + kPart >= head.K;
      const int64_t numbers = ends ? head.K - k : kPart;
      const Part<T> next(head, ends ? n + kPanel : n, ends ? 0 : k + kPart, kPart);
      const int64_t last = n + kPanel < end ? n + kPanel : end;
      pack_panel(static_cast<const T*>(head.weight) + k, head.stride, last, numbers, n, panel);
      for_each_run(0, count, [&](int64_t i, int64_t rows) {
        next.prefetch(i, i + rows, count);
        multiply_panel(in + i * stride + k, rows, stride, panel, numbers, sums + i * kTileStride, kTileStride, k > 0);
      });
    }
  }
}

// The same with the rows as panels and the weight where it lies.
template <typename T>
void multiply_unpacked(const Shared<T>& shared, int64_t begin, int64_t end, int64_t first, int64_t count, float* sums) {
  const LinearArgs& head = shared.args.head;
  const uint32_t* in = reinterpret_cast<const uint32_t*>(shared.in) + first * words<Operand<T>>(head.K);
  for (int64_t n = begin; n < end; n += kPanel, sums += kPanel) {
    for (int64_t i = 0; i < count; i += kPanel) {
      const Range rows{i, count - i < kPanel ? count - i : kPanel};
      multiply_in_place(head, n, in, count, rows, sums + i * kTileStride, kTileStride, kLongest);
    }
  }
}

template <typename T>
WINO_HD void multiply(const Shared<T>& shared, int64_t begin, int64_t end, int64_t first, int64_t count,
                      uint32_t* panel, float* sums) {
  if constexpr (kHasTiles) {
    if (multiplies_in_place(shared.args)) return multiply_unpacked(shared, begin, end, first, count, sums);
  }
  multiply_packed(shared, begin, end, first, count, panel, sums);
}

template <typename T>
void score_columns(const Shared<T>& shared, int64_t begin, int64_t end, int64_t first, int64_t count, Score* scores,
                   char* scratch) {
  const HeadArgs& a = shared.args;
  uint32_t* panel = reinterpret_cast<uint32_t*>(scratch);
  float* logits = reinterpret_cast<float*>(panel + kPartWords * kPanel);
  for (int64_t i = 0; i < count; ++i) scores[i] = {0.0, -1, -INFINITY, -INFINITY, NAN, NAN};
  for (int64_t tile = begin; tile < end; tile += kTile) {
    const int64_t width = end - tile < kTile ? end - tile : kTile;
    multiply(shared, tile, tile + width, first, count, panel, logits);
    const int64_t whole = (width + 4 * Vec::N - 1) / (4 * Vec::N) * (4 * Vec::N);
    for (int64_t i = 0; i < count; ++i) {
      finish_logits<T>(a, tile, width, whole, logits + i * kTileStride);
      fold(a, shared.wanted[first + i], tile, logits + i * kTileStride, whole, scores[i]);
    }
  }
}

// From the stretches' results, joined from left to right.
template <typename T>
void finish_row(const Shared<T>& shared, int64_t i) {
  const HeadArgs& a = shared.args;
  const int64_t r = shared.wanted[i], candidate = a.candidate_ids[r];
  const Score& first = shared.scores[i];
  ExpSum softmax{first.max, first.rest};
  Best best{first.best, first.best_id};
  float best_logit = first.best_logit, given = first.given;
  for (int64_t stretch = 1; stretch < shared.layout.stretches; ++stretch) {
    const Score& part = shared.scores[stretch * shared.rows + i];
    softmax = merge(softmax, {part.max, part.rest});
    if (part.given == part.given) given = part.given;
    const Best challenger{part.best, part.best_id};
    if (challenger.id < 0 || (best.id >= 0 && !beats(challenger, best))) continue;
    best = challenger;
    best_logit = part.best_logit;
  }
  const bool draws = candidate == kDraft && best.id >= 0;
  const double confidence = probability(draws ? best_logit : given, softmax);
  a.confidence[r] = confidence;
  a.token_ids[r] = candidate != kDraft ? candidate : draws && confidence == confidence ? best.id : 0;
}

template <typename T>
void gather_rows(const Shared<T>& shared, int64_t first, int64_t last) {
  const HeadArgs& a = shared.args;
  const auto row = [&](int64_t i) { return static_cast<const T*>(a.hidden) + shared.wanted[i] * a.row_stride; };
  for (int64_t i = first; multiplies_in_place(a) && i < last; i += Vec::N) {
    uint32_t* panel = reinterpret_cast<uint32_t*>(shared.in) + i / kPanel * kPanel * words<Operand<T>>(a.head.K);
    const int64_t number = last - i < Vec::N ? last - i : Vec::N;
    pack_any_columns<T>([&](int64_t c) { return row(i + c); }, number, a.head.K, panel + i % kPanel);
  }
  for (int64_t i = first; !multiplies_in_place(a) && i < last; ++i) {
    Operand<T>* to = shared.in + i * shared.layout.stride;
    store_operands(row(i), a.head.K, to);
    pad_row(to, a.head.K);
  }
}

template <typename T>
void work(void* context) {
  Shared<T>& shared = *static_cast<Shared<T>*>(context);
  const Layout<T>& layout = shared.layout;
  const int64_t thread = __atomic_fetch_add(&shared.next_thread, 1, __ATOMIC_RELAXED), V = shared.args.head.N;
  char* scratch = shared.scratch + thread * layout.thread_bytes;
  const Tiles tiles;
  for (int64_t task; shared.queue.take(&task);) {
    // Neighbouring tasks read the same weights.
    const int64_t stretch = task / shared.groups, group = task % shared.groups;
    const int64_t begin = stretch * layout.stretch, end = begin + layout.stretch < V ? begin + layout.stretch : V;
    const int64_t units = (shared.rows + layout.unit - 1) / layout.unit, end_row = units * (group + 1) / shared.groups;
    const int64_t first = units * group / shared.groups * layout.unit;
    const int64_t last = end_row * layout.unit < shared.rows ? end_row * layout.unit : shared.rows;
    // A task that has all columns of its rows sees to everything about them.
    const bool has_all = layout.stretches == 1;
    if (has_all) gather_rows(shared, first, last);
    score_columns(shared, begin, end, first, last - first, shared.scores + stretch * shared.rows + first, scratch);
    for (int64_t i = first; has_all && i < last; ++i) finish_row(shared, i);
  }
}

// The next `most` rows that need logits, from row `next` on; those between that need none are finished here.
int64_t choose_rows(const HeadArgs& a, int64_t most, int64_t* next, int64_t* wanted) {
  int64_t count = 0;
  for (; *next < a.rows && count < most; ++*next) {
    const int64_t r = *next, candidate = a.candidate_ids[r];
    const bool drafts = candidate == kDraft;
    if (drafts ? can_draw(draw_of(a.temperature, a.seed, r)) : candidate >= 0 && candidate < a.head.N) {
      wanted[count++] = r;
      continue;
    }
    a.token_ids[r] = drafts ? 0 : candidate;
    a.confidence[r] = candidate == kSkip ? 0.0 : NAN;
  }
  return count;
}

// Parts of the rows: small enough for a thread's memory, and of few stretches as many as there are threads to busy.
int64_t groups_of(int64_t rows, int64_t group, int64_t run, int64_t stretches, int threads) {
  const int64_t least = (rows + group - 1) / group, most = (rows + run - 1) / run;
  const int64_t wanted = (threads + stretches - 1) / stretches;
  return wanted < least ? least : wanted < most ? wanted : most;
}

template <typename T>
void run(const HeadArgs& a, char* memory) {
  const Layout<T> layout(a);
  int64_t* wanted = reinterpret_cast<int64_t*>(memory + layout.wanted);
  Operand<T>* gathered = reinterpret_cast<Operand<T>*>(memory + layout.gathered);
  for (int64_t next = 0; next < a.rows;) {
    const int64_t rows = choose_rows(a, layout.at_once, &next, wanted);
    if (rows == 0) return;
    const int64_t groups = groups_of(rows, layout.group, layout.run, layout.stretches, a.threads);
    const int64_t tasks = layout.stretches * groups;
    Shared<T> shared{a,
                     layout,
                     wanted,
                     rows,
                     groups,
                     gathered,
                     reinterpret_cast<Score*>(memory + layout.scores),
                     memory + layout.threads,
                     0,
                     {tasks, 0}};
    const bool in_stretches = layout.stretches > 1;
    if (in_stretches) gather_rows(shared, 0, rows);
    run_on_threads(tasks < a.threads ? static_cast<int>(tasks) : a.threads, work<T>, &shared);
    for (int64_t i = 0; in_stretches && i < rows; ++i) finish_row(shared, i);
  }
}

}  // namespace

int64_t linear_score_tokens_bytes(const HeadArgs& a) {
  return with_dtype(a.dtype, [&](auto x) { return Layout<decltype(x)>(a).bytes; });
}

void linear_score_tokens(const HeadArgs& a, void* scratch) {
  with_dtype(a.dtype, [&](auto x) { run<decltype(x)>(a, static_cast<char*>(scratch)); });
}

WINO_CPU_END
