// The reductions behind trajectory_loss: each tile of logits is folded into the rows' running sums while it is in
// cache; backward, it is turned into the gradient of its logits in place.
#include "cpu/kernels.h"
#include "cpu/operators.h"
#include "cpu/reduce.h"
#include "cpu/threads.h"

WINO_CPU_BEGIN

namespace {

constexpr int64_t kLossElementsPerThread = 32768;
constexpr int64_t kLossStep = 4 * Vec::N;

struct Moments {
  double sum;     // of exp(x - reference)
  double moment;  // of (x - reference) exp(x - reference)
  float max;
};

// x - reference, never so low that its product with its own exponential is not a number.
WINO_HD Vec::F shifted(Vec::F x, Vec::F reference) {
  return Vec::max(Vec::splat(kLowestExponent), Vec::sub(x, reference));
}

template <typename T>
WINO_HD Moments block_moments(const T* x, int64_t n, float reference) {
  const Vec::F ref = Vec::splat(reference);
  Vec::F sum[4], moment[4], top[4];
  for (int k = 0; k < 4; ++k) {
    sum[k] = moment[k] = Vec::splat(0.0f);
    top[k] = Vec::splat(-INFINITY);
  }
  double sums = 0.0, moments = 0.0;
  for (int64_t begin = 0; begin < n; begin += 8 * kLossStep) {
    const int64_t end = n - begin < 8 * kLossStep ? n : begin + 8 * kLossStep;
    for (int64_t i = begin; i < end; i += kLossStep) {
      for (int k = 0; k < 4; ++k) {
        const Vec::F v = Vec::load(x + i + k * Vec::N);
        const Vec::F d = shifted(v, ref);
        const Vec::F e = exp_clamped(d);
        top[k] = Vec::max(v, top[k]);
        sum[k] = Vec::add(sum[k], e);
        moment[k] = Vec::fma(d, e, moment[k]);
      }
    }
    sums += reduce_add(Vec::add(Vec::add(sum[0], sum[1]), Vec::add(sum[2], sum[3])));
    moments += reduce_add(Vec::add(Vec::add(moment[0], moment[1]), Vec::add(moment[2], moment[3])));
    for (int k = 0; k < 4; ++k) sum[k] = moment[k] = Vec::splat(0.0f);
  }
  return {sums, moments, Vec::largest(Vec::max(Vec::max(top[0], top[1]), Vec::max(top[2], top[3])))};
}

template <typename T>
WINO_HD void fold_block(const T* x, int64_t n, int64_t id, LossRow& row) {
  float reference = row.reference == -INFINITY ? block_max(x, n) : row.reference;
  if (reference == -INFINITY) reference = 0.0f;
  Moments block = block_moments(x, n, reference);
  if (block.max > reference + kHeadroom) {
    reference = block.max;
    block = block_moments(x, n, reference);
  }
  if (row.reference != -INFINITY && row.reference != reference) {
    const double rise = static_cast<double>(row.reference) - reference, scale = exp(rise);
    row.moment = scale * (row.moment + rise * row.sum);
    row.sum *= scale;
  }
  row.reference = reference;
  row.sum += block.sum;
  row.moment += block.moment;
  if (block.max > row.best) {
    row.best = block.max;
    row.best_id = id + first_equal(x, n, block.max);
  }
}

template <typename T>
WINO_HD void copy_padded(const T* x, int64_t n, T tail[kLossStep]) {
  for (int64_t i = 0; i < kLossStep; ++i) {
    if (i < n) {
      tail[i] = x[i];
    } else {
      set_negative_infinity(&tail[i]);
    }
  }
}

template <typename T>
void fold_loss_row(const LossArgs& a, int64_t r) {
  const T* x = static_cast<const T*>(a.logits) + r * a.row_stride;
  LossRow& row = a.state[r];
  const int64_t whole = a.width / kLossStep * kLossStep;
  for (int64_t i = 0; i < whole; i += kBlock) {
    fold_block(x + i, whole - i < kBlock ? whole - i : kBlock, a.first_id + i, row);
  }
  if (whole != a.width) {
    T tail[kLossStep];
    copy_padded(x + whole, a.width - whole, tail);
    fold_block(tail, kLossStep, a.first_id + whole, row);
  }
  const int64_t label = a.labels[r] - a.first_id;
  if (label >= 0 && label < a.width) row.label_logit = to_float(x[label]);
}

// d CE / d logit = p - [label];  d H / d logit = -p (log p + H).
template <typename T>
WINO_HD void gradient_of(const T* x, const LossGradient& row, float out[kLossStep]) {
  const Vec::F log_sum = Vec::splat(row.log_sum_exp), entropy = Vec::splat(row.entropy);
  const Vec::F cross = Vec::splat(row.of_cross_entropy), minus = Vec::splat(-row.of_entropy);
  for (int k = 0; k < 4; ++k) {
    const Vec::F log_p = shifted(Vec::load(x + k * Vec::N), log_sum);
    const Vec::F factor = Vec::fma(minus, Vec::add(log_p, entropy), cross);
    Vec::store(out + k * Vec::N, Vec::mul(exp_clamped(log_p), factor));
  }
}

template <typename T>
void gradient_row(const LossArgs& a, int64_t r) {
  T* x = static_cast<T*>(const_cast<void*>(a.logits)) + r * a.row_stride;
  const LossGradient& row = a.gradient[r];
  const int64_t label = a.labels[r] - a.first_id;
  float label_gradient = 0.0f;
  for (int64_t i = 0; i < a.width; i += kLossStep) {
    const int64_t n = a.width - i < kLossStep ? a.width - i : kLossStep;
    float out[kLossStep];
    if (n == kLossStep) {
      gradient_of(x + i, row, out);
    } else {
      T tail[kLossStep];
      copy_padded(x + i, n, tail);
      gradient_of(tail, row, out);
    }
    if (label >= i && label < i + n) label_gradient = out[label - i] - row.of_cross_entropy;
    for (int64_t j = 0; j < n; ++j) from_float(out[j], x + i + j);
  }
  if (label >= 0 && label < a.width) from_float(label_gradient, x + label);
}

struct SharedLoss {
  const LossArgs* args;
  void (*row)(const LossArgs&, int64_t);
  TaskQueue queue;
};

void each_row(void* context) {
  SharedLoss& shared = *static_cast<SharedLoss*>(context);
  for (int64_t r; shared.queue.take(&r);) shared.row(*shared.args, r);
}

void over_rows(const LossArgs& a, void (*row)(const LossArgs&, int64_t)) {
  SharedLoss shared{&a, row, {a.rows, 0}};
  const int64_t worth = a.rows * a.width / kLossElementsPerThread;
  run_on_threads(worth < a.threads ? static_cast<int>(worth) : a.threads, each_row, &shared);
}

}  // namespace

void trajectory_loss_begin(const LossArgs& a) {
  for (int64_t r = 0; r < a.rows; ++r) a.state[r] = {0.0, 0.0, -1, -INFINITY, -INFINITY, NAN};
}

void trajectory_loss_tile(const LossArgs& a) {
  with_dtype(a.dtype, [&](auto x) { over_rows(a, fold_loss_row<decltype(x)>); });
}

void trajectory_loss_end(const LossArgs& a, double* log_sum_exp, double* entropy, double* cross_entropy, float* top_p,
                         int64_t* top) {
  for (int64_t r = 0; r < a.rows; ++r) {
    const LossRow& row = a.state[r];
    const double log_sum = log(row.sum);
    log_sum_exp[r] = row.reference + log_sum;
    entropy[r] = log_sum - row.moment / row.sum;
    cross_entropy[r] = log_sum_exp[r] - row.label_logit;
    top_p[r] = static_cast<float>(exp(row.best - log_sum_exp[r]));
    top[r] = row.best_id;
  }
}

void trajectory_loss_gradient(const LossArgs& a) {
  with_dtype(a.dtype, [&](auto x) { over_rows(a, gradient_row<decltype(x)>); });
}

WINO_CPU_END
