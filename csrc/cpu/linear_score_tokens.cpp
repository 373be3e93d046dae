// The reduction behind a tiled LM head: each tile of logits is folded into the rows' running state while it is in
// cache.
#include "cpu/kernels.h"
#include "cpu/operators.h"
#include "cpu/reduce.h"
#include "cpu/threads.h"

WINO_CPU_BEGIN

namespace {

constexpr int64_t kElementsPerThread = 32768;

struct Shared {
  const TileArgs* args;
  TaskQueue queue;
};

template <typename T>
void fold_row(const TileArgs& a, int64_t r) {
  const int64_t candidate = a.candidate_ids[r];
  const T* x = static_cast<const T*>(a.logits) + r * a.row_stride;
  TileRow& state = a.state[r];
  const Draw draw = draw_of(a.temperature, a.seed, r);

  RowState row{{state.max, state.sum}, {state.best, state.best_id}};
  reduce_stretch(x, a.width, a.first_id, candidate == kDraft ? &draw : nullptr, row);
  if (row.best.id != state.best_id) state.best_logit = to_float(x[row.best.id - a.first_id]);
  if (candidate >= a.first_id && candidate < a.first_id + a.width) state.given = to_float(x[candidate - a.first_id]);
  state.max = row.softmax.max;
  state.sum = row.softmax.sum;
  state.best = row.best.value;
  state.best_id = row.best.id;
}

template <typename T>
void fold_rows(void* context) {
  Shared& shared = *static_cast<Shared*>(context);
  for (int64_t r; shared.queue.take(&r);) fold_row<T>(*shared.args, r);
}

}  // namespace

void linear_score_tokens_begin(const TileArgs& a) {
  for (int64_t r = 0; r < a.rows; ++r) a.state[r] = {0.0, -1, -INFINITY, -INFINITY, NAN, NAN};
}

void linear_score_tokens_tile(const TileArgs& a) {
  Shared shared{&a, {a.rows, 0}};
  const int64_t worth = a.rows * a.width / kElementsPerThread;
  const int threads = worth < a.threads ? static_cast<int>(worth) : a.threads;
  switch (a.dtype) {
    case kFloat32:
      return run_on_threads(threads, fold_rows<float>, &shared);
    case kBFloat16:
      return run_on_threads(threads, fold_rows<BFloat16>, &shared);
    case kFloat16:
      return run_on_threads(threads, fold_rows<Float16>, &shared);
  }
}

void linear_score_tokens_end(const TileArgs& a, int64_t V, int64_t* token_ids, float* confidence) {
  for (int64_t r = 0; r < a.rows; ++r) {
    const TileRow& state = a.state[r];
    const int64_t candidate = a.candidate_ids[r];
    const bool draft = candidate == kDraft;
    const bool valid = draft ? can_draw(draw_of(a.temperature, a.seed, r)) : candidate >= 0 && candidate < V;
    confidence[r] = valid ? probability(draft ? state.best_logit : state.given, {state.max, state.sum}) : NAN;
    token_ids[r] = !draft ? candidate : state.best_id >= 0 && confidence[r] == confidence[r] ? state.best_id : 0;
  }
}

WINO_CPU_END
