// What attention needs of a row: norm, the projections to query, key and value, rotary embedding.
#include "cpu/operators.h"
#include "cpu/row_math.h"

WINO_CPU_BEGIN

namespace {

// Some of the projections, of all rows or of those that ask.
struct Job {
  const int64_t* rows;  // [B, count]; nullptr: all
  int64_t count;        // a sequence
  int first, last;      // projections first ... last - 1
  int64_t tasks;
};

template <typename T>
struct Shared {
  const QkvArgs& args;
  Job jobs[2];
  int64_t group;  // columns that are finished together: whole panels and whole heads
  PackedProducts<T, 3> products;
};

WINO_HD int64_t columns_together(const QkvArgs& a) {
  if (a.head_dim % kPanel == 0) return a.head_dim;
  if (kPanel % a.head_dim == 0) return kPanel;
  int64_t widest = 0;
  for (const LinearArgs& linear : a.linear) widest = linear.N > widest ? linear.N : widest;
  return panels(widest) * kPanel;
}

template <typename A>
WINO_HD int64_t thread_bytes(const QkvArgs& a) {
  const int64_t normed = aligned(padded<A>(a.D) * static_cast<int64_t>(sizeof(A)));
  return kTaskRows * (normed + columns_together(a) * static_cast<int64_t>(sizeof(float)));
}

// Row r of a job: its sequence and its place there.
struct Place {
  int64_t b, l;
};

WINO_HD Place place_of(const Job& job, int64_t r) {
  const int64_t b = r / job.count, i = r % job.count;
  return {b, job.rows == nullptr ? i : job.rows[b * job.count + i]};
}

// Where a row's sums are, and where its rotary table begins.
struct Origin {
  int64_t sums, table;
};

template <typename T>
void finish_columns(const QkvArgs& a, const Origin* origins, int projection, int64_t n, int64_t columns, int64_t first,
                    int64_t count, const float* sums, int64_t stride) {
  const LinearArgs& linear = a.linear[projection];
  for (int64_t i = 0; i < count; ++i) {
    const Layer<T> projected{sums + origins[i].sums * stride, bias_of<T>(linear, n)};
    T* out = static_cast<T*>(a.out[projection]) + (first + i) * linear.N + n;
    if (projection == 2) {
      store_layer(projected, columns, out);
      continue;
    }
    const float *cosine = a.cosine + origins[i].table, *sine = a.sine + origins[i].table;
    for (int64_t c = 0; c < columns; c += a.head_dim) {
      rotate(projected, c, cosine, sine, a.head_dim, a.full_precision, out + c);
    }
  }
}

template <typename T>
void project_rows(const Shared<T>& shared, const Job& job, int64_t task, char* scratch) {
  using A = Operand<T>;
  const QkvArgs& a = shared.args;
  const int64_t rows = a.B * job.count, first = rows * task / job.tasks, last = rows * (task + 1) / job.tasks;
  const int64_t count = last - first, stride = padded<A>(a.D);
  float* sums = reinterpret_cast<float*>(scratch);
  A* normed = reinterpret_cast<A*>(scratch + kTaskRows * shared.group * sizeof(float));
  Origin origins[kTaskRows];
  int64_t different = 0;
  const T* before = nullptr;
  for (int64_t i = 0; i < count; ++i) {
    const Place place = place_of(job, first + i);
    const T* x = static_cast<const T*>(a.x) + place.b * a.x_batch_stride + place.l * a.x_row_stride;
    // In the first layer a run of masked tokens, the shadow block say, is one row many times over: multiplied once.
    if (before == nullptr || memcmp(before, x, a.D * sizeof(T)) != 0) {
      rms_norm(x, static_cast<const T*>(a.norm_weight), a.eps, a.D, normed + different * stride);
      pad_row(normed + different * stride, a.D);
      ++different;
    }
    before = x;
    origins[i] = {different - 1, place.b * a.table_batch_stride + place.l * a.table_row_stride};
  }
  for (int projection = job.first; projection < job.last; ++projection) {
    const int64_t N = a.linear[projection].N;
    for (int64_t n = 0; n < N; n += shared.group) {
      const int64_t columns = N - n < shared.group ? N - n : shared.group;
      for (int64_t c = 0; c < columns; c += kPanel) {
        const uint32_t* panel = shared.products.panel(projection, n + c);
        multiply_panel(normed, different, stride, panel, a.D, sums + c, shared.group);
      }
      finish_columns<T>(a, origins, projection, n, columns, first, count, sums, shared.group);
    }
  }
}

template <typename T>
void work(void* context) {
  Shared<T>& shared = *static_cast<Shared<T>*>(context);
  const int64_t first_tasks = shared.jobs[0].tasks;
  shared.products.work([&](int64_t task, char* scratch) {
    const bool is_second = task >= first_tasks;
    project_rows(shared, shared.jobs[is_second], is_second ? task - first_tasks : task, scratch);
  });
}

template <typename T>
int64_t bytes(const QkvArgs& a) {
  return PackedProducts<T, 3>::bytes(a.linear, a.threads, thread_bytes<Operand<T>>(a));
}

template <typename T>
void run(const QkvArgs& a, char* scratch) {
  const Job some{nullptr, a.L, a.all_ask ? 0 : 1, 3, tasks_of(a.B * a.L, a.threads)};
  const Job asking{a.query_rows, a.Q, 0, 1, a.all_ask ? 0 : tasks_of(a.B * a.Q, a.threads)};
  const int64_t tasks = some.tasks + asking.tasks;
  Shared<T> shared{a, {some, asking}, columns_together(a), {a.linear, scratch, thread_bytes<Operand<T>>(a), tasks}};
  run_on_threads(a.threads, work<T>, &shared);
}

}  // namespace

int64_t norm_qkv_rope_bytes(const QkvArgs& a) { return a.dtype == kBFloat16 ? bytes<BFloat16>(a) : bytes<float>(a); }

void norm_qkv_rope(const QkvArgs& a, void* scratch) {
  if (a.dtype == kBFloat16) return run<BFloat16>(a, static_cast<char*>(scratch));
  run<float>(a, static_cast<char*>(scratch));
}

WINO_CPU_END
