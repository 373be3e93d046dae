// All layers of a trunk in one call: the tasks of norm_qkv_rope, shadow_attention and out_norm_swiglu, layer by layer.
// A sequence goes on to the next of them while others are still in the one before.
#include "cpu/norm_qkv_rope.h"
#include "cpu/operators.h"
#include "cpu/out_norm_swiglu.h"
#include "cpu/row_math.h"
#include "cpu/shadow_attention.h"

WINO_CPU_BEGIN

namespace {

constexpr int kStagesOfLayer = 5;
constexpr int64_t kMostTogether = 16;  // sequences
constexpr double kFuller = 1.02;       // makes up for fewer groups

WINO_HD int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Sequences that go through the layers together: as many as fill their tasks best, of what leaves some for each thread.
Groups groups_of(const TrunkArgs& a) {
  Groups best{a.B, 1};
  double fullest = 0.0;
  for (int64_t each = 1; each <= kMostTogether && each <= (a.B + a.threads - 1) / a.threads; ++each) {
    const double tasks = static_cast<double>(tasks_of(each * a.L, 1)), full = each * a.L / (tasks * kTaskRows);
    if (full <= kFuller * fullest) continue;
    best.each = each;
    fullest = full;
  }
  return best;
}

template <typename T>
struct LayerTasks {
  NormQkvRope<T> before;
  ShadowAttention<T> attention;
  OutNormSwiglu<T> after;
};

// A group of sequences touches its own part alone, so that none waits for another; the last layer's queries, which are
// fewer, therefore have memory of their own.
template <typename T>
struct Buffers {
  T *x[2], *query, *key, *value, *attended, *last_query, *last_attended;
  int64_t *query_rows, *answers;  // of the last layer: [B, R] which rows ask, and where each leaving row's answer is
  char *qkv_packed, *mlp_packed;  // weights of one layer at a time
  LayerTasks<T>* layers;          // [num_layers]
  Stage* stages;                  // [kStagesOfLayer num_layers + 1]
  int64_t* done;                  // [groups] of each stage
  char* scratch;                  // of the threads
  int64_t bytes;

  Buffers(const TrunkArgs& a, int64_t qkv_bytes, int64_t mlp_bytes, int64_t scratch_bytes, char* memory) {
    const LinearArgs* linear = a.layers[0].linear;
    const int64_t stages = kStagesOfLayer * a.num_layers + 1;
    char* next = memory;
    const auto take = [&](auto*& begin, int64_t number) {
      begin = reinterpret_cast<decltype(begin + 0)>(next);
      next += aligned(number * static_cast<int64_t>(sizeof(*begin)));
    };
    for (T*& each : x) take(each, a.B * a.L * a.D);
    take(query, a.B * a.L * linear[0].N);
    take(attended, a.B * a.L * linear[0].N);
    take(last_query, a.B * a.R * linear[0].N);
    take(last_attended, a.B * a.R * linear[0].N);
    take(key, a.B * a.L * linear[1].N);
    take(value, a.B * a.L * linear[2].N);
    take(query_rows, a.B * a.R);
    take(answers, a.B * a.R);
    take(qkv_packed, qkv_bytes);
    take(mlp_packed, mlp_bytes);
    take(layers, a.num_layers);
    take(this->stages, stages);
    take(done, stages * groups_of(a).count());
    take(scratch, scratch_bytes);
    bytes = next - memory;
  }
};

// The three calls of layer l; x: what comes into it, dense unless it is the first.
struct Layer3 {
  QkvArgs before;
  AttentionArgs attention;
  MlpArgs after;
};

void set_strides(int64_t strides[3], int64_t batch, int64_t head, int64_t row) {
  strides[0] = batch;
  strides[1] = head;
  strides[2] = row;
}

template <typename T>
Layer3 calls_of(const TrunkArgs& a, const Buffers<T>& to, int64_t l) {
  const LayerArgs& layer = a.layers[l];
  const bool is_first = l == 0, is_last = l == a.num_layers - 1;
  const void* x = is_first ? a.x : to.x[(l - 1) % 2];
  const int64_t x_batch = is_first ? a.x_batch_stride : a.L * a.D, x_row = is_first ? a.x_row_stride : a.D;
  const int64_t queries = is_last ? a.R : a.L;  // rows that are computed after attention's keys and values
  const int64_t width = layer.linear[0].N, key_width = layer.linear[1].N;
  T *query = is_last ? to.last_query : to.query, *attended = is_last ? to.last_attended : to.attended;

  QkvArgs before{};
  before.dtype = a.dtype;
  before.B = a.B;
  before.L = a.L;
  before.D = a.D;
  before.head_dim = a.head_dim;
  before.x = x;
  before.x_batch_stride = x_batch;
  before.x_row_stride = x_row;
  before.query_rows = to.query_rows;
  before.Q = queries;
  before.all_ask = !is_last;
  before.norm_weight = layer.norm;
  before.eps = a.eps;
  for (int i = 0; i < 3; ++i) before.linear[i] = layer.linear[i];
  before.cosine = a.cosine;
  before.sine = a.sine;
  before.table_batch_stride = a.table_batch_stride;
  before.table_row_stride = a.table_row_stride;
  before.full_precision = a.full_precision;
  before.out[0] = query;
  before.out[1] = to.key;
  before.out[2] = to.value;
  before.threads = a.threads;

  AttentionArgs attention{};
  attention.dtype = a.dtype;
  attention.B = a.B;
  attention.heads = width / a.head_dim;
  attention.key_heads = key_width / a.head_dim;
  attention.Lq = queries;
  attention.Lk = a.L;
  attention.head_dim = a.head_dim;
  attention.num_shadow = a.num_shadow;
  attention.query = query;
  attention.key = to.key;
  attention.value = to.value;
  set_strides(attention.query_strides, queries * width, a.head_dim, width);
  set_strides(attention.key_strides, a.L * key_width, a.head_dim, key_width);
  set_strides(attention.value_strides, a.L * key_width, a.head_dim, key_width);
  attention.query_rows = is_last ? to.query_rows : nullptr;
  attention.block_start = a.block_start;
  attention.visible = a.visible;
  attention.scale = 1.0f / sqrtf(static_cast<float>(a.head_dim));
  attention.out = attended;
  set_strides(attention.out_strides, queries * width, a.head_dim, width);
  attention.threads = a.threads;

  MlpArgs after{};
  after.dtype = a.dtype;
  after.B = a.B;
  after.L = queries;
  after.D = a.D;
  after.head_dim = a.head_dim;
  after.x = x;
  after.x_batch_stride = x_batch;
  after.x_row_stride = x_row;
  after.x_rows = is_last ? a.rows : nullptr;
  after.attended = attended;
  after.attended_rows = is_last ? to.answers : nullptr;
  after.attended_batch_stride = width * queries;
  after.attended_head_stride = a.head_dim;
  after.attended_row_stride = width;
  after.norm_weight = layer.inner_norm;
  after.eps = a.eps;
  for (int i = 0; i < 4; ++i) after.linear[i] = layer.linear[3 + i];
  after.out = is_last ? a.out : to.x[l % 2];
  after.threads = a.threads;
  return {before, attention, after};
}

// The rows that ask in the last layer are those that leave, real ones before shadow rows.
template <typename T>
void ask(const TrunkArgs& a, const Buffers<T>& to) {
  for (int64_t b = 0; b < a.B; ++b) {
    const int64_t* rows = a.rows + b * a.R;
    int64_t place = 0;
    for (int kind = 0; kind < 2; ++kind) {
      for (int64_t i = 0; i < a.R; ++i) {
        if ((rows[i] >= a.L - a.num_shadow) != (kind == 1)) continue;
        to.query_rows[b * a.R + place] = rows[i];
        to.answers[b * a.R + i] = place++;
      }
    }
  }
}

// What the layers' tasks need of memory: packed weights, and of each thread.
template <typename T>
struct Needs {
  int64_t qkv = 0, mlp = 0, thread = 0;

  explicit Needs(const TrunkArgs& a) {
    const Buffers<T> nowhere(a, 0, 0, 0, nullptr);
    for (int64_t l = 0; l < a.num_layers; ++l) {
      const Layer3 layer = calls_of(a, nowhere, l);
      qkv = larger(qkv, NormQkvRope<T>::packed_bytes(layer.before));
      mlp = larger(mlp, OutNormSwiglu<T>::packed_bytes(layer.after));
      thread = larger(thread, NormQkvRope<T>::thread_bytes(layer.before));
      thread = larger(thread, ShadowAttention<T>::thread_bytes(layer.attention));
      thread = larger(thread, OutNormSwiglu<T>::thread_bytes(layer.after));
    }
  }
};

template <typename T>
Buffers<T> buffers_of(const TrunkArgs& a, const Needs<T>& needs, char* memory) {
  const bool is_packed = a.packed != nullptr;
  return {a, is_packed ? 0 : needs.qkv, is_packed ? 0 : needs.mlp, a.threads * needs.thread, memory};
}

// The final norm of a sequence's leaving rows.
template <typename T>
void norm_rows(const void* context, int64_t group, int64_t sequence, char*) {
  const TrunkArgs& a = *static_cast<const TrunkArgs*>(context);
  const Groups groups = groups_of(a);
  if (sequence >= groups.size(group)) return;
  T* x = static_cast<T*>(a.out) + (groups.first(group) + sequence) * a.R * a.D;
  for (int64_t i = 0; i < a.R; ++i, x += a.D) {
    scale_row(x, rms_scale(x, a.eps, a.D), static_cast<const T*>(a.norm), a.D, x);
  }
}

// The tasks of layer l, whose weights are packed with all others or in the place of the layer before.
template <typename T>
void set_tasks(const TrunkArgs& a, const Needs<T>& needs, const Buffers<T>& to, Groups groups, int64_t l) {
  const Layer3 calls = calls_of(a, to, l);
  char *qkv = to.qkv_packed, *mlp = to.mlp_packed;
  if (a.packed != nullptr) {
    qkv = static_cast<char*>(const_cast<void*>(a.packed)) + l * (needs.qkv + needs.mlp);
    mlp = qkv + needs.qkv;
  }
  to.layers[l] = {{calls.before, groups, qkv}, {calls.attention, groups}, {calls.after, groups, mlp}};
}

// A layer's stages: a group goes through rows, heads and rows, one after the other. Weights that are not packed yet are
// packed where those of the layer before are no longer needed, behind tasks that other threads are still at.
//   qkv packed | rows | mlp packed | heads | (the next layer's qkv packed) | rows
template <typename T>
int64_t plan(const TrunkArgs& a, const Needs<T>& needs, const Buffers<T>& to) {
  const Groups groups = groups_of(a);
  const bool packs = a.packed == nullptr;
  Stage *next = to.stages, *qkv_packed = nullptr, *qkv_rows = nullptr, *mlp_rows = nullptr;
  const auto add = [&](const Stage& stage, const Stage* group, const Stage* all) {
    *next = stage;
    next->needs_group = group;
    next->needs_all = all;
    return next++;
  };
  for (int64_t l = 0; l < a.num_layers; ++l) set_tasks(a, needs, to, groups, l);
  if (packs) qkv_packed = add(to.layers[0].before.packing(), nullptr, nullptr);
  for (int64_t l = 0; l < a.num_layers; ++l) {
    const LayerTasks<T>& layer = to.layers[l];
    qkv_rows = add(layer.before.rows(), mlp_rows, qkv_packed);
    const Stage* mlp_packed = packs ? add(layer.after.packing(), nullptr, mlp_rows) : nullptr;
    const Stage* heads = add(layer.attention.heads(), qkv_rows, nullptr);
    if (packs && l + 1 < a.num_layers) qkv_packed = add(to.layers[l + 1].before.packing(), nullptr, qkv_rows);
    mlp_rows = add(layer.after.rows(), heads, mlp_packed);
  }
  if (a.norm != nullptr) {
    add({groups.count(), groups.each, norm_rows<T>, &a}, mlp_rows, nullptr);
  }
  return next - to.stages;
}

template <typename T>
void run(const TrunkArgs& a, char* memory) {
  const Needs<T> needs(a);
  const Buffers<T> to = buffers_of(a, needs, memory);
  ask(a, to);
  run_stages(to.stages, plan(a, needs, to), to.done, a.threads, to.scratch, needs.thread);
}

// The layers of one sequence of one row, whose weights are packed as those of any other.
TrunkArgs layers_alone(const TrunkArgs& a) {
  TrunkArgs alone{};
  alone.dtype = a.dtype;
  alone.D = a.D;
  alone.num_layers = a.num_layers;
  alone.layers = a.layers;
  alone.threads = a.threads;
  alone.B = alone.L = alone.R = alone.head_dim = 1;
  return alone;
}

// The packing of all layers as tasks of one stage, layer by layer.
template <typename T>
struct Packing {
  const TrunkArgs& args;
  const Needs<T> needs;
  const Buffers<T> nowhere;
  char* packed;
  int64_t each = 0;  // tasks of a layer

  Packing(const TrunkArgs& a, char* packed) : args(a), needs(a), nowhere(a, 0, 0, 0, nullptr), packed(packed) {
    with_stages(0, [this](const Stage& qkv, const Stage& mlp) { each = qkv.tasks + mlp.tasks; });
  }

  template <typename Function>
  void with_stages(int64_t l, const Function& f) const {
    char* memory = packed + l * (needs.qkv + needs.mlp);
    const Layer3 calls = calls_of(args, nowhere, l);
    const NormQkvRope<T> before(calls.before, {1, 1}, memory);
    const OutNormSwiglu<T> after(calls.after, {1, 1}, memory + needs.qkv);
    f(before.packing(), after.packing());
  }

  static void run(const void* context, int64_t, int64_t task, char*) {
    const Packing& self = *static_cast<const Packing*>(context);
    self.with_stages(task / self.each, [&](const Stage& qkv, const Stage& mlp) {
      const int64_t number = task % self.each;
      const Stage& stage = number < qkv.tasks ? qkv : mlp;
      stage.run(stage.context, 0, number < qkv.tasks ? number : number - qkv.tasks, nullptr);
    });
  }
};

template <typename T>
void pack(const TrunkArgs& a, char* packed) {
  const Packing<T> packing(a, packed);
  Stage stage{1, a.num_layers * packing.each, Packing<T>::run, &packing};
  int64_t done;
  run_stages(&stage, 1, &done, a.threads, nullptr, 0);
}

template <typename T>
int64_t packed_bytes(const TrunkArgs& a) {
  const Needs<T> needs(a);
  return a.num_layers * (needs.qkv + needs.mlp);
}

}  // namespace

int64_t packed_trunk_bytes(const TrunkArgs& a) {
  return a.dtype == kBFloat16 ? packed_bytes<BFloat16>(layers_alone(a)) : packed_bytes<float>(layers_alone(a));
}

void pack_trunk(const TrunkArgs& a, void* packed) {
  if (a.dtype == kBFloat16) return pack<BFloat16>(layers_alone(a), static_cast<char*>(packed));
  pack<float>(layers_alone(a), static_cast<char*>(packed));
}

int64_t shadow_trunk_bytes(const TrunkArgs& a) {
  if (a.dtype == kBFloat16) return buffers_of(a, Needs<BFloat16>(a), nullptr).bytes;
  return buffers_of(a, Needs<float>(a), nullptr).bytes;
}

void shadow_trunk(const TrunkArgs& a, void* memory) {
  if (a.dtype == kBFloat16) return run<BFloat16>(a, static_cast<char*>(memory));
  run<float>(a, static_cast<char*>(memory));
}

WINO_CPU_END
