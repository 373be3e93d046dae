// What score_tokens is held against: its arithmetic without the memory traffic, and the traffic without the arithmetic.
#include "cpu/operators.h"
#include "cpu/reduce.h"
#include "cpu/threads.h"

WINO_CPU_BEGIN

namespace {

constexpr int64_t kStretch = 1 << 15;  // floats per task

struct Shared {
  const float* data;
  uint64_t sink;
  TaskQueue queue;
};

// The result has to go somewhere, or the compiler drops the work.
void drain(Shared& shared, float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  __atomic_fetch_add(&shared.sink, bits, __ATOMIC_RELAXED);
}

void exponentiate(void* context) {
  Shared& shared = *static_cast<Shared*>(context);
  float block[2 * kBlock];  // the prefetch of block_exp_sum stays inside
  for (int64_t i = 0; i < 2 * kBlock; ++i) block[i] = static_cast<float>(i % 16);
  double sum = 0.0;
  for (int64_t task; shared.queue.take(&task);)
    sum += total(block_exp_sum(block, kBlock, static_cast<float>(16 + task % 2)).sum);
  drain(shared, static_cast<float>(sum));
}

void read_stretches(void* context) {
  Shared& shared = *static_cast<Shared*>(context);
  float max = 0.0f;
  for (int64_t task; shared.queue.take(&task);) {
    const float m = block_max(shared.data + task * kStretch, kStretch);
    max = m > max ? m : max;
  }
  drain(shared, max);
}

}  // namespace

void exponentials(int64_t n, int threads) {
  Shared shared{nullptr, 0, {n / kBlock, 0}};
  run_on_threads(threads, exponentiate, &shared);
}

void read_once(const float* data, int64_t n, int threads) {
  Shared shared{data, 0, {n / kStretch, 0}};
  run_on_threads(threads, read_stretches, &shared);
}

WINO_CPU_END
