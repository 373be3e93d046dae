// All layers of a trunk in one call: norm_qkv_rope, shadow_attention and out_norm_swiglu, one after the other.
#include "cpu/operators.h"
#include "cpu/row_math.h"

WINO_CPU_BEGIN

namespace {

WINO_HD int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

struct Buffers {
  char *x[2], *query, *key, *value, *attended, *scratch;
  int64_t *query_rows, *answers;  // of the last layer: [B, R + num_shadow], [B, R]
  int64_t bytes;

  Buffers(const TrunkArgs& a, int64_t scratch_bytes, char* memory) {
    const int64_t size = a.dtype == kBFloat16 ? sizeof(BFloat16) : sizeof(float),
                  most = larger(a.L, a.R + a.num_shadow);
    const LinearArgs* linear = a.layers[0].linear;
    char* next = memory;
    const auto take = [&](int64_t n) {
      char* begin = next;
      next += aligned(n);
      return begin;
    };
    for (char*& each : x) each = take(a.B * a.L * a.D * size);
    query = take(a.B * most * linear[0].N * size);
    attended = take(a.B * most * linear[0].N * size);
    key = take(a.B * a.L * linear[1].N * size);
    value = take(a.B * a.L * linear[2].N * size);
    query_rows = reinterpret_cast<int64_t*>(take(a.B * (a.R + a.num_shadow) * static_cast<int64_t>(sizeof(int64_t))));
    answers = reinterpret_cast<int64_t*>(take(a.B * a.R * static_cast<int64_t>(sizeof(int64_t))));
    scratch = take(scratch_bytes);
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

Layer3 calls_of(const TrunkArgs& a, const Buffers& to, int64_t l) {
  const LayerArgs& layer = a.layers[l];
  const bool is_first = l == 0, is_last = l == a.num_layers - 1;
  const void* x = is_first ? a.x : to.x[(l - 1) % 2];
  const int64_t x_batch = is_first ? a.x_batch_stride : a.L * a.D, x_row = is_first ? a.x_row_stride : a.D;
  const int64_t queries = is_last ? a.R + a.num_shadow : a.L, leaving = is_last ? a.R : a.L;
  const int64_t width = layer.linear[0].N, key_width = layer.linear[1].N;

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
  before.out[0] = to.query;
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
  attention.query = to.query;
  attention.key = to.key;
  attention.value = to.value;
  set_strides(attention.query_strides, queries * width, a.head_dim, width);
  set_strides(attention.key_strides, a.L * key_width, a.head_dim, key_width);
  set_strides(attention.value_strides, a.L * key_width, a.head_dim, key_width);
  attention.block_start = a.block_start;
  attention.visible = a.visible;
  attention.scale = 1.0f / sqrtf(static_cast<float>(a.head_dim));
  attention.out = to.attended;
  attention.threads = a.threads;

  MlpArgs after{};
  after.dtype = a.dtype;
  after.B = a.B;
  after.L = leaving;
  after.D = a.D;
  after.head_dim = a.head_dim;
  after.x = x;
  after.x_batch_stride = x_batch;
  after.x_row_stride = x_row;
  after.x_rows = is_last ? a.rows : nullptr;
  after.attended = to.attended;
  after.attended_rows = is_last ? to.answers : nullptr;
  after.attended_batch_stride = width * queries;
  after.attended_head_stride = queries * a.head_dim;
  after.attended_row_stride = a.head_dim;
  after.norm_weight = layer.inner_norm;
  after.eps = a.eps;
  for (int i = 0; i < 4; ++i) after.linear[i] = layer.linear[3 + i];
  after.out = is_last ? a.out : to.x[l % 2];
  after.threads = a.threads;
  return {before, attention, after};
}

int64_t scratch_bytes_of(const TrunkArgs& a) {
  int64_t most = 0;
  const Buffers nowhere(a, 0, nullptr);
  for (int64_t l = 0; l < a.num_layers; ++l) {
    const Layer3 layer = calls_of(a, nowhere, l);
    most = larger(most, norm_qkv_rope_bytes(layer.before));
    most = larger(most, shadow_attention_bytes(layer.attention));
    most = larger(most, out_norm_swiglu_bytes(layer.after));
  }
  return most;
}

// The rows that ask in the last layer: each leaving row as a real one, then the whole shadow block, as attention
// expects it; a leaving shadow row finds its answer there.
void ask(const TrunkArgs& a, const Buffers& to) {
  const int64_t queries = a.R + a.num_shadow, real = a.L - a.num_shadow;
  for (int64_t b = 0; b < a.B; ++b) {
    for (int64_t i = 0; i < a.R; ++i) {
      const int64_t row = a.rows[b * a.R + i];
      to.query_rows[b * queries + i] = row;
      to.answers[b * a.R + i] = row < real ? i : row - real + a.R;
    }
    for (int64_t j = 0; j < a.num_shadow; ++j) to.query_rows[b * queries + a.R + j] = real + j;
  }
}

struct Norm {
  const TrunkArgs* args;
  TaskQueue queue;
};

template <typename T>
void norm_rows(void* context) {
  Norm& shared = *static_cast<Norm*>(context);
  const TrunkArgs& a = *shared.args;
  for (int64_t task; shared.queue.take(&task);) {
    for (int64_t row = task * a.R; row < (task + 1) * a.R; ++row) {
      T* x = static_cast<T*>(a.out) + row * a.D;
      rms_norm(x, static_cast<const T*>(a.norm), a.eps, a.D, x);
    }
  }
}

}  // namespace

int64_t shadow_trunk_bytes(const TrunkArgs& a) { return Buffers(a, scratch_bytes_of(a), nullptr).bytes; }

void shadow_trunk(const TrunkArgs& a, void* memory) {
  const Buffers to(a, scratch_bytes_of(a), static_cast<char*>(memory));
  ask(a, to);
  for (int64_t l = 0; l < a.num_layers; ++l) {
    const Layer3 layer = calls_of(a, to, l);
    norm_qkv_rope(layer.before, to.scratch);
    shadow_attention(layer.attention, to.scratch);
    out_norm_swiglu(layer.after, to.scratch);
  }
  if (a.norm == nullptr) return;
  Norm shared{&a, {a.B, 0}};
  run_on_threads(a.threads, a.dtype == kBFloat16 ? norm_rows<BFloat16> : norm_rows<float>, &shared);
}

WINO_CPU_END
