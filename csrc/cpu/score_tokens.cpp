#include "cpu/operators.h"

#include <cstdlib>

#include "cpu/reduce.h"
#include "cpu/threads.h"

WINO_CPU_BEGIN

namespace {

// A row is always reduced in these pieces, merged from left to right: its bits depend on neither batch nor threads.
constexpr int64_t kChunk = 16384;
// Elements below which another thread costs more than it brings.
constexpr int64_t kElementsPerThread = 32768;

struct Row {
  int64_t index, candidate, offset;
  Draw draw;
};

Row row_of(const ScoreArgs& a, int64_t index) {
  const int64_t offset = index / a.inner * a.outer_stride + index % a.inner * a.inner_stride;
  return {index, a.candidate_ids[index], offset, draw_of(a.temperature, a.seed, index)};
}

template <typename T>
void reduce_chunk(const ScoreArgs& a, const Row& row, int64_t chunk, RowState& state) {
  const int64_t begin = chunk * kChunk, left = a.V - begin;
  reduce_stretch(static_cast<const T*>(a.logits) + row.offset + begin, left < kChunk ? left : kChunk, begin,
                 row.candidate == kDraft ? &row.draw : nullptr, state);
}

bool needs_logits(const ScoreArgs& a, const Row& row) {
  return row.candidate == kDraft ? can_draw(row.draw) : row.candidate >= 0 && row.candidate < a.V;
}

void finish_without_logits(const ScoreArgs& a, const Row& row) {
  a.token_ids[row.index] = row.candidate == kDraft ? 0 : row.candidate;
  a.confidence[row.index] = row.candidate == kSkip ? 0.0 : NAN;
}

template <typename T>
void finish(const ScoreArgs& a, const Row& row, const RowState& state) {
  // A row without a valid logit has no best token; token 0 stands in for it beside the NaN confidence.
  const int64_t drafted = state.best.id < 0 ? 0 : state.best.id;
  const int64_t token = row.candidate == kDraft ? drafted : row.candidate;
  const float logit = to_float((static_cast<const T*>(a.logits) + row.offset)[token]);
  const double confidence = probability(logit, state.softmax);
  a.confidence[row.index] = confidence;
  a.token_ids[row.index] = row.candidate == kDraft && confidence != confidence ? 0 : token;
}

struct Shared {
  const ScoreArgs* args;
  int64_t chunks;
  RowState* partial;  // [rows, chunks], only where a task is a chunk
  TaskQueue queue;
};

template <typename T>
void score_rows(void* context) {
  Shared& shared = *static_cast<Shared*>(context);
  const ScoreArgs& a = *shared.args;
  for (int64_t task; shared.queue.take(&task);) {
    const Row row = row_of(a, task);
    if (!needs_logits(a, row)) {
      finish_without_logits(a, row);
      continue;
    }
    RowState state = empty_row();
    for (int64_t chunk = 0; chunk < shared.chunks; ++chunk) {
      RowState part{empty_exp_sum(), state.best};
      reduce_chunk<T>(a, row, chunk, part);
      state = {merge(state.softmax, part.softmax), part.best};
    }
    finish<T>(a, row, state);
  }
}

template <typename T>
void score_chunks(void* context) {
  Shared& shared = *static_cast<Shared*>(context);
  const ScoreArgs& a = *shared.args;
  for (int64_t task; shared.queue.take(&task);) {
    const Row row = row_of(a, task / shared.chunks);
    shared.partial[task] = empty_row();
    if (needs_logits(a, row)) reduce_chunk<T>(a, row, task % shared.chunks, shared.partial[task]);
  }
}

template <typename T>
void combine_chunks(const Shared& shared, int64_t rows) {
  const ScoreArgs& a = *shared.args;
  for (int64_t r = 0; r < rows; ++r) {
    const Row row = row_of(a, r);
    if (!needs_logits(a, row)) {
      finish_without_logits(a, row);
      continue;
    }
    RowState state = empty_row();
    for (int64_t chunk = 0; chunk < shared.chunks; ++chunk) {
      const RowState& part = shared.partial[r * shared.chunks + chunk];
      state.softmax = merge(state.softmax, part.softmax);
      if (part.best.id >= 0 && (state.best.id < 0 || beats(part.best, state.best))) state.best = part.best;
    }
    finish<T>(a, row, state);
  }
}

template <typename T>
void score(const ScoreArgs& a) {
  const int64_t rows = a.outer * a.inner, chunks = (a.V + kChunk - 1) / kChunk;
  int64_t active = 0;
  for (int64_t r = 0; r < rows; ++r) active += a.candidate_ids[r] != kSkip;
  const int64_t worth = active * a.V / kElementsPerThread;
  const int threads = worth < a.threads ? static_cast<int>(worth) : a.threads;

  Shared shared{&a, chunks, nullptr, {rows, 0}};
  // Whole rows while there are plenty for every thread, else their chunks: the bits are the same.
  if (threads > 1 && active < 4 * static_cast<int64_t>(threads)) {
    shared.partial = static_cast<RowState*>(malloc(static_cast<size_t>(rows * chunks) * sizeof(RowState)));
  }
  if (shared.partial == nullptr) return run_on_threads(threads, score_rows<T>, &shared);
  shared.queue.count = rows * chunks;
  run_on_threads(threads, score_chunks<T>, &shared);
  combine_chunks<T>(shared, rows);
  free(shared.partial);
}

}  // namespace

void score_tokens(const ScoreArgs& args) {
  with_dtype(args.dtype, [&](auto x) { score<decltype(x)>(args); });
}

WINO_CPU_END
