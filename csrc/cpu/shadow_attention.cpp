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
  A *query, *weights;       // [kRunRows, padded d], [kRunRows, padded Lk]
  float *scores, *sums;     // [kRunRows, Lk up to a panel], [kRunRows, d up to a panel]
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
    query = reinterpret_cast<A*>(take(kRunRows * padded<A>(d) * size));
    weights = reinterpret_cast<A*>(take(kRunRows * L * size));
    scores = reinterpret_cast<float*>(take(kRunRows * L * word));
    sums = reinterpret_cast<float*>(take(kRunRows * up_to_panel(d) * word));
    hidden = reinterpret_cast<float*>(take(L * word));
    bytes = next - memory;
  }
};

WINO_HD int64_t up_to_vector(int64_t n) { return (n + Vec::N - 1) / Vec::N * Vec::N; }

// Whether numbers are multiplied as they are.
WINO_HD bool is_operand(const float*) { return true; }
WINO_HD bool is_operand(const Float16*) { return false; }
WINO_HD bool is_operand(const BFloat16*) { return sizeof(Operand<BFloat16>) == sizeof(BFloat16); }

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

// A vector's limits: those of `edge` from N - n on let its first n lanes through, those of `one` from N - 1 - i on all
// but lane i.
struct Limits {
  float edge[2 * Vec::N], one[2 * Vec::N];

  constexpr Limits() : edge{}, one{} {
    for (int i = 0; i < 2 * Vec::N; ++i) {
      edge[i] = i < Vec::N ? INFINITY : -INFINITY;
      one[i] = i == Vec::N - 1 ? -INFINITY : INFINITY;
    }
  }
};
constexpr Limits kLimits;

WINO_HD void limit(float* x, const float* most) { Vec::store(x, Vec::min(Vec::load(x), Vec::load(most))); }

WINO_HD void scale_and_hide(float* x, int64_t n, float scale, const float* hidden) {
  for (int64_t k = 0; k < n; k += Vec::N) {
    const Vec::F score = Vec::mul(Vec::load(x + k), Vec::splat(scale));
    Vec::store(x + k, hidden == nullptr ? score : Vec::min(score, Vec::load(hidden + k)));
  }
}

// Hides key `own`, if it is one, and what is behind the last of n scores; returns the largest that is left. A NaN
// counts for nothing here or becomes inf: in both cases the sum of weights is NaN.
WINO_HD float hide_and_find_largest(float* x, int64_t n, int64_t own) {
  if (own >= 0) limit(x + own / Vec::N * Vec::N, kLimits.one + Vec::N - 1 - own % Vec::N);
  if (n % Vec::N != 0) limit(x + n / Vec::N * Vec::N, kLimits.edge + Vec::N - n % Vec::N);
  Vec::F most[2] = {Vec::splat(-INFINITY), Vec::splat(-INFINITY)};
  int64_t k = 0;
  for (; k + Vec::N < n; k += 2 * Vec::N) {
    for (int i = 0; i < 2; ++i) most[i] = Vec::max(Vec::load(x + k + i * Vec::N), most[i]);
  }
  if (k < n) most[0] = Vec::max(Vec::load(x + k), most[0]);
  return Vec::largest(Vec::max(most[0], most[1]));
}

// The weights exp(scale (x - largest)) of n scores as operands, and of what is behind them up to a whole vector: there,
// as where a score is -inf, the weight is 2^-126. Returns their sum; 0: no key is seen.
template <typename T>
float softmax_row(const float* x, int64_t n, float scale, float largest, Operand<T>* weights) {
  if (largest == -INFINITY) {
    for (int64_t k = 0; k < n; ++k) {
      if (x[k] != x[k]) return NAN;
    }
    return 0.0f;
  }
  Vec::F total = Vec::splat(0.0f);
  const Vec::F factor = Vec::splat(scale * kLog2OfE), shift = Vec::splat(largest);
  for_vectors(up_to_vector(n), [&](auto count, int64_t k) {
    Vec::F weight[count.n];
    load(x + k, weight);
    for (Vec::F& each : weight) each = Vec::mul(Vec::sub(each, shift), factor);
    power_of_two(weight);
    for (Vec::F& each : weight) total = Vec::add(total, each);
    store(weight, weights + k);
  });
  return Vec::sum(total);
}

// How many of a sequence's queries are real, which are its first.
WINO_HD int64_t real_queries(const AttentionArgs& a, int64_t b) {
  if (a.query_rows == nullptr) return a.Lq - a.num_shadow;
  int64_t number = 0;
  while (number < a.Lq && a.query_rows[b * a.Lq + number] < a.Lk - a.num_shadow) ++number;
  return number;
}

// Which of the shadow queries query i is.
WINO_HD int64_t shadow_query(const AttentionArgs& a, int64_t b, int64_t i) {
  if (a.query_rows == nullptr) return i - (a.Lq - a.num_shadow);
  return a.query_rows[b * a.Lq + i] - (a.Lk - a.num_shadow);
}

// Queries first ... first + rows of query head h, all of them real or all of them shadow queries.
template <typename T>
void attend_rows(const AttentionArgs& a, const Head<T>& head, const Buffers<T>& in, int64_t b, int64_t h, int64_t first,
                 int64_t rows, bool is_shadow) {
  using A = Operand<T>;
  const int64_t d = a.head_dim, q_stride = padded<A>(d), w_stride = up_to_panel(a.Lk), s_stride = up_to_panel(d);
  const int64_t keys = is_shadow ? head.count : head.real;
  T* out = static_cast<T*>(a.out) + b * a.out_strides[0] + h * a.out_strides[1] + first * a.out_strides[2];
  const T* query = static_cast<const T*>(a.query) + b * a.query_strides[0] + h * a.query_strides[1];
  const A* asking = in.query;
  int64_t asking_stride = q_stride;
  if (is_operand(query) && d == q_stride) {
    asking = reinterpret_cast<const A*>(query + first * a.query_strides[2]);
    asking_stride = a.query_strides[2];
  } else {
    for (int64_t i = 0; i < rows; ++i) {
      store_operands(query + (first + i) * a.query_strides[2], d, in.query + i * q_stride);
      pad_row(in.query + i * q_stride, d);
    }
  }
  for (int64_t n = 0; n < keys; n += kPanel) {
    multiply_panel(asking, rows, asking_stride, in.keys + n * words<A>(d), d, in.scores + n, w_stride);
  }
  const bool scaled = head.visible != nullptr || !(a.scale > 0.0f);  // before the largest is looked for
  int64_t own[kRunRows];
  float largest[kRunRows], sums[kRunRows];
  // One thing at a time for all rows: what it takes a row to have its largest score hides behind the other rows.
  for (int64_t i = 0; i < rows; ++i) {
    float* scores = in.scores + i * w_stride;
    own[i] = is_shadow ? head.own + shadow_query(a, b, first + i) : -1;
    if (own[i] < 0 || own[i] >= head.real) own[i] = -1;
    if (scaled) scale_and_hide(scores, keys, a.scale, head.visible == nullptr ? nullptr : in.hidden);
    largest[i] = hide_and_find_largest(scores, keys, own[i]);
  }
  for (int64_t i = 0; i < rows; ++i) {
    A* weights = in.weights + i * w_stride;
    sums[i] = softmax_row<T>(in.scores + i * w_stride, keys, scaled ? 1.0f : a.scale, largest[i], weights);
  }
  // 2^-126 is nothing beside the largest weight, but a product with it is not zero; behind the last real key it would
  // be one with a shadow key's value.
  for (int64_t i = 0; i < rows; ++i) {
    pad_row(in.weights + i * w_stride, keys);
    if (own[i] >= 0) from_float(0.0f, in.weights + i * w_stride + own[i]);
  }
  for (int64_t n = 0; n < d; n += kPanel) {
    multiply_panel(in.weights, rows, w_stride, in.values + n * words<A>(a.Lk), keys, in.sums + n, s_stride);
  }
  const int64_t out_stride = a.out_strides[2];
  for (int64_t i = 0; i < rows; ++i, out += out_stride) {
    const float* sum = in.sums + i * s_stride;
    int64_t c = 0;
    if (sums[i] != 0.0f) {
      c = for_vectors(d, [&](auto count, int64_t first_column) {
        Vec::F mean[count.n];
        load(sum + first_column, mean);
        for (Vec::F& each : mean) each = Vec::div(each, Vec::splat(sums[i]));
        Round<T>::store(mean, out + first_column);
      });
    }
    for (; c < d; ++c) from_float(sums[i] == 0.0f ? 0.0f : sum[c] / sums[i], out + c);
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
  const int64_t shared = a.heads / a.key_heads, real = real_queries(a, b);  // query heads of a key head
  const int64_t begin = a.Lq * chunk / chunks_, end = a.Lq * (chunk + 1) / chunks_;
  const int64_t middle = real < begin ? begin : real > end ? end : real;  // between real and shadow queries
  for (int64_t h = key_head * shared; h < (key_head + 1) * shared; ++h) {
    const auto attend = [&](bool is_shadow) {
      return [&, is_shadow](int64_t first, int64_t rows) { attend_rows(a, head, in, b, h, first, rows, is_shadow); };
    };
    for_each_run(begin, middle, attend(false));
    for_each_run(middle, end, attend(true));
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
