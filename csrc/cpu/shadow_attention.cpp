// Attention of real queries over the real keys, and of shadow queries over all keys but their own token's. The scores
// of a few rows are alive at a time; keys and values of a head are packed once for all of its queries.
#include "cpu/shadow_attention.h"

#include "cpu/operators.h"
#include "cpu/row_math.h"

WINO_CPU_BEGIN

namespace {

constexpr int64_t kFewestRows = 4 * kRegisterRows;  // of a task: packing a head's keys should be worth it

WINO_HD int64_t up_to_panel(int64_t n) { return panels(n) * kPanel; }

// A thread's memory.
template <typename T>
struct Buffers {
  using A = Operand<T>;
  uint32_t *keys, *values;  // packed
  A *query, *weights;       // [kRegisterRows, padded d], [kRegisterRows, padded Lk]
  float *scores, *sums;     // [kRegisterRows, Lk up to a panel], [kRegisterRows, d up to a panel]
  float* hidden;            // [Lk up to a panel]: the most a score may be, -inf of a key that may not be attended
  int64_t bytes;

  Buffers(const AttentionArgs& a, char* memory) {
    const int64_t d = a.head_dim, L = up_to_panel(a.Lk), size = sizeof(A), word = sizeof(uint32_t);
    char* next = memory;
    const auto take = [&](int64_t n) {
      char* begin = next;
      next += aligned(n);
      return begin;
    };
    keys = reinterpret_cast<uint32_t*>(take(packed_words<A>(a.Lk, d) * word));
    values = reinterpret_cast<uint32_t*>(take(packed_words<A>(d, L) * word));
    query = reinterpret_cast<A*>(take(kRegisterRows * padded<A>(d) * size));
    weights = reinterpret_cast<A*>(take(kRegisterRows * L * size));
    scores = reinterpret_cast<float*>(take(kRegisterRows * L * word));
    sums = reinterpret_cast<float*>(take(kRegisterRows * up_to_panel(d) * word));
    hidden = reinterpret_cast<float*>(take(L * word));
    bytes = next - memory;
  }
};

// Keys from the first that may be attended on, of one head.
template <typename T>
struct Head {
  const T *key, *value;
  const bool* visible;  // nullptr: all
  int64_t count, real;  // keys, and those of them that are real
  int64_t own;          // the real key that shadow query 0 does not see
};

template <typename T>
WINO_HD Head<T> head_of(const AttentionArgs& a, int64_t b, int64_t h) {
  Head<T> head{static_cast<const T*>(a.key) + b * a.key_strides[0] + h * a.key_strides[1],
               static_cast<const T*>(a.value) + b * a.value_strides[0] + h * a.value_strides[1],
               a.visible == nullptr ? nullptr : a.visible + b * a.Lk,
               a.Lk,
               a.Lk - a.num_shadow,
               a.block_start[b]};
  int64_t front = 0;
  while (head.visible != nullptr && front < head.real && !head.visible[front]) ++front;
  head.key += front * a.key_strides[2];
  head.value += front * a.value_strides[2];
  if (head.visible != nullptr) head.visible += front;
  head.count -= front;
  head.real -= front;
  // Far from the real keys, whatever it is: the difference must not overflow.
  head.own = head.own < -a.num_shadow || head.own > a.Lk ? head.count : head.own - front;
  return head;
}

// The value matrix (keys, d) as the right side of a product: word k of column c holds c's numbers of one or two keys.
WINO_HD void pack_values(const float* value, int64_t stride, int64_t keys, int64_t d, int64_t n, const bool* visible,
                         uint32_t* panel) {
  const int64_t columns = d - n < kPanel ? d - n : kPanel;
  for (int64_t k = 0; k < keys; ++k) {
    float* to = reinterpret_cast<float*>(panel) + k * kPanel;
    memset(to, 0, kPanel * sizeof(float));
    if (visible == nullptr || visible[k]) memcpy(to, value + k * stride + n, columns * sizeof(float));
  }
}

template <typename T>
WINO_HD void pack_values(const T* value, int64_t stride, int64_t keys, int64_t d, int64_t n, const bool* visible,
                         uint32_t* panel) {
  const int64_t columns = d - n < kPanel ? d - n : kPanel;
  if (sizeof(Operand<T>) == sizeof(float)) {
    for (int64_t k = 0; k < keys; ++k) {
      float* to = reinterpret_cast<float*>(panel) + k * kPanel;
      memset(to, 0, kPanel * sizeof(float));
      if (visible != nullptr && !visible[k]) continue;
      for (int64_t c = 0; c < columns; ++c) to[c] = to_float(value[k * stride + n + c]);
    }
    return;
  }
  for (int64_t k = 0; k < keys; k += 2, panel += kPanel) {
    uint16_t pair[2][kPanel];
    for (int64_t i = 0; i < 2; ++i) {
      const bool seen = k + i < keys && (visible == nullptr || visible[k + i]);
      if (!seen || columns < kPanel) memset(pair[i], 0, sizeof(pair[i]));
      if (seen && columns == kPanel) memcpy(pair[i], value + (k + i) * stride + n, sizeof(pair[i]));
      if (seen && columns < kPanel) memcpy(pair[i], value + (k + i) * stride + n, columns * sizeof(T));
    }
    for (int c = 0; c < kPanel; ++c) panel[c] = pair[0][c] | static_cast<uint32_t>(pair[1][c]) << 16;
  }
}

template <typename T>
void pack_head(const AttentionArgs& a, const Head<T>& head, const Buffers<T>& to) {
  using A = Operand<T>;
  const int64_t d = a.head_dim;
  for (int64_t n = 0; n < head.count; n += kPanel) {
    pack_panel(head.key, a.key_strides[2], head.count, d, n, to.keys + n * words<A>(d));
  }
  for (int64_t n = 0; n < d; n += kPanel) {
    pack_values(head.value, a.value_strides[2], head.count, d, n, head.visible, to.values + n * words<A>(a.Lk));
  }
  for (int64_t k = 0; head.visible != nullptr && k < head.count; ++k)
    to.hidden[k] = head.visible[k] ? INFINITY : -INFINITY;
}

WINO_HD void store_weight(float* to, Vec::F weight) { Vec::store(to, weight); }
WINO_HD void store_weight(BFloat16* to, Vec::F weight) { Vec::store_bfloat16(to, weight); }

// The weights exp(scale x - largest) of n scores as operands, zero for key `own` and behind the last. Returns their
// sum; 0: no key is seen.
template <typename T>
float softmax_row(float* x, int64_t n, float scale, const float* hidden, int64_t own, Operand<T>* weights) {
  const int64_t end = (n + Vec::N - 1) / Vec::N * Vec::N;
  if (hidden != nullptr || !(scale > 0.0f)) {
    for (int64_t k = 0; k < end; k += Vec::N) {
      const Vec::F score = Vec::mul(Vec::load(x + k), Vec::splat(scale));
      Vec::store(x + k, hidden == nullptr ? score : Vec::min(score, Vec::load(hidden + k)));
    }
    scale = 1.0f;
  }
  const bool sees_all = own < 0 || own >= n;
  if (!sees_all) x[own] = -INFINITY;
  for (int64_t k = n; k < end; ++k) x[k] = -INFINITY;

  Vec::F most = Vec::splat(-INFINITY);
  for (int64_t k = 0; k < end; k += Vec::N) most = Vec::max(Vec::load(x + k), most);  // NaN is passed over here
  const float largest = Vec::largest(most);
  if (largest == -INFINITY) {
    for (int64_t k = 0; k < n; ++k) {
      if (x[k] != x[k]) return NAN;
    }
    return 0.0f;
  }
  Vec::F total = Vec::splat(0.0f);
  const Vec::F factor = Vec::splat(scale * kLog2OfE), shift = Vec::splat(largest);
  for (int64_t k = 0; k < end; k += Vec::N) {
    const Vec::F weight = power_of_two(Vec::mul(Vec::sub(Vec::load(x + k), shift), factor));
    total = Vec::add(total, weight);
    store_weight(weights + k, weight);
  }
  // Where a score is -inf, 2^-126 stands: nothing beside the largest weight, but a product with it is not zero.
  if (!sees_all) from_float(0.0f, weights + own);
  for (int64_t k = n; k < end; ++k) from_float(0.0f, weights + k);
  return Vec::sum(total);
}

// Queries first ... first + rows of query head h, all of them real or all of them shadow queries.
template <typename T>
void attend_rows(const AttentionArgs& a, const Head<T>& head, const Buffers<T>& in, int64_t b, int64_t h, int64_t first,
                 int64_t rows) {
  using A = Operand<T>;
  const int64_t d = a.head_dim, q_stride = padded<A>(d), w_stride = up_to_panel(a.Lk), s_stride = up_to_panel(d);
  const int64_t shadow = first - (a.Lq - a.num_shadow), keys = shadow < 0 ? head.real : head.count;
  T* out = static_cast<T*>(a.out) + ((b * a.heads + h) * a.Lq + first) * d;
  const T* query = static_cast<const T*>(a.query) + b * a.query_strides[0] + h * a.query_strides[1];
  for (int64_t i = 0; i < rows; ++i) {
    store_operands(query + (first + i) * a.query_strides[2], d, in.query + i * q_stride);
    pad_row(in.query + i * q_stride, d);
  }
  for (int64_t n = 0; n < keys; n += kPanel) {
    multiply_panel(in.query, rows, q_stride, in.keys + n * words<A>(d), d, in.scores + n, w_stride);
  }
  float sums[kRegisterRows];
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t own = shadow < 0 || head.own + shadow + i >= head.real ? -1 : head.own + shadow + i;
    const float* hidden = head.visible == nullptr ? nullptr : in.hidden;
    sums[i] = softmax_row<T>(in.scores + i * w_stride, keys, a.scale, hidden, own, in.weights + i * w_stride);
  }
  for (int64_t n = 0; n < d; n += kPanel) {
    multiply_panel(in.weights, rows, w_stride, in.values + n * words<A>(a.Lk), keys, in.sums + n, s_stride);
  }
  for (int64_t i = 0; i < rows; ++i) {
    const float* sum = in.sums + i * s_stride;
    int64_t c = 0;
    for (; c + Vec::N <= d && sums[i] != 0.0f; c += Vec::N) {
      Round<T>::store(out + i * d + c, Vec::div(Vec::load(sum + c), Vec::splat(sums[i])));
    }
    for (; c < d; ++c) from_float(sums[i] == 0.0f ? 0.0f : sum[c] / sums[i], out + i * d + c);
  }
}

}  // namespace

template <typename T>
int64_t ShadowAttention<T>::thread_bytes(const AttentionArgs& a) {
  return Buffers<T>(a, nullptr).bytes;
}

template <typename T>
ShadowAttention<T>::ShadowAttention(const AttentionArgs& a, Groups groups) : args_(a), groups_(groups) {
  const int64_t heads = a.B * a.key_heads, wanted = (2 * a.threads + heads - 1) / heads;
  const int64_t most = a.Lq * (a.heads / a.key_heads) / kFewestRows;
  chunks_ = heads >= a.threads && heads % a.threads == 0 ? 1 : wanted < most ? wanted : most;
  if (chunks_ < 1) chunks_ = 1;
}

template <typename T>
Stage ShadowAttention<T>::heads() const {
  const auto run = [](const void* context, int64_t group, int64_t task, char* scratch) {
    const ShadowAttention& self = *static_cast<const ShadowAttention*>(context);
    const int64_t head = task / self.chunks_, key_heads = self.args_.key_heads;
    if (head / key_heads >= self.groups_.size(group)) return;
    self.attend_chunk(self.groups_.first(group) + head / key_heads, head % key_heads, task % self.chunks_, scratch);
  };
  const int64_t tasks = groups_.each * args_.key_heads * chunks_;
  return {groups_.count(), tasks, run, this};
}

template <typename T>
void ShadowAttention<T>::attend_chunk(int64_t b, int64_t key_head, int64_t chunk, char* scratch) const {
  const AttentionArgs& a = args_;
  const Buffers<T> in(a, scratch);
  const Head<T> head = head_of<T>(a, b, key_head);
  pack_head(a, head, in);
  const int64_t shared = a.heads / a.key_heads, real = a.Lq - a.num_shadow;  // query heads of a key head
  const int64_t begin = a.Lq * chunk / chunks_, end = a.Lq * (chunk + 1) / chunks_;
  const int64_t middle = real < begin ? begin : real > end ? end : real;  // between real and shadow queries
  for (int64_t h = key_head * shared; h < (key_head + 1) * shared; ++h) {
    for_each_run(begin, middle, [&](int64_t first, int64_t rows) { attend_rows(a, head, in, b, h, first, rows); });
    for_each_run(middle, end, [&](int64_t first, int64_t rows) { attend_rows(a, head, in, b, h, first, rows); });
  }
}

template class ShadowAttention<float>;
template class ShadowAttention<BFloat16>;
template class ShadowAttention<Float16>;

namespace {

template <typename T>
void run(const AttentionArgs& a, char* scratch) {
  const ShadowAttention<T> tasks(a, {a.B, a.B});
  Stage stage = tasks.heads();
  int64_t done;
  run_stages(&stage, 1, &done, a.threads, scratch, tasks.thread_bytes(a));
}

}  // namespace

int64_t shadow_attention_bytes(const AttentionArgs& a) {
  return with_dtype(a.dtype, [&](auto x) { return a.threads * ShadowAttention<decltype(x)>::thread_bytes(a); });
}

void shadow_attention(const AttentionArgs& a, void* scratch) {
  with_dtype(a.dtype, [&](auto x) { run<decltype(x)>(a, static_cast<char*>(scratch)); });
}

WINO_CPU_END
