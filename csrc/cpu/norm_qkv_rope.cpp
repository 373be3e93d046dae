// What attention needs of a row: norm, the projections to query, key and value, rotary embedding.
#include "cpu/norm_qkv_rope.h"

#include "cpu/operators.h"
#include "cpu/row_math.h"

WINO_CPU_BEGIN

namespace {

WINO_HD int64_t columns_together(const QkvArgs& a) {
  if (a.head_dim % kPanel == 0) return a.head_dim;
  if (kPanel % a.head_dim == 0) return kPanel;
  int64_t widest = 0;
  for (const LinearArgs& linear : a.linear) widest = linear.N > widest ? linear.N : widest;
  return panels(widest) * kPanel;
}

constexpr int kPlaces = 256;
static_assert(kTaskRows < kPlaces, "a row's number and one more fit a byte");

// A hash of what row x (D,) begins with.
template <typename T>
WINO_HD int place_of(const T* x, int64_t D) {
  uint64_t begin = 0;
  const int64_t bytes = D * static_cast<int64_t>(sizeof(T));
  memcpy(&begin, x, bytes < static_cast<int64_t>(sizeof(begin)) ? bytes : sizeof(begin));
  return static_cast<int>(begin * 0x9E3779B97F4A7C15ull >> 56);
}

// Origins of `different` rows in the order of these, equal ones as they come.
template <typename Origin>
void sort_by_row(Origin* origins, int64_t count, int64_t different) {
  if (different == count) return;
  Origin unsorted[kTaskRows];
  int64_t end[kTaskRows + 1] = {};
  for (int64_t i = 0; i < count; ++i) {
    unsorted[i] = origins[i];
    ++end[origins[i].row + 1];
  }
  for (int64_t row = 0; row < different; ++row) end[row + 1] += end[row];
  for (int64_t i = 0; i < count; ++i) origins[end[unsorted[i].row]++] = unsorted[i];
}

}  // namespace

template <typename T>
int64_t NormQkvRope<T>::thread_bytes(const QkvArgs& a) {
  using A = Operand<T>;
  const int64_t normed = aligned(padded<A>(a.D) * static_cast<int64_t>(sizeof(A)));
  const int64_t sums = kRunRows * columns_together(a) * static_cast<int64_t>(sizeof(float));
  return (a.in_place ? 2 : 1) * kTaskRows * normed + sums;
}

template <typename T>
NormQkvRope<T>::NormQkvRope(const QkvArgs& a, Groups groups, char* packed)
    : args_(a),
      groups_(groups),
      jobs_{{nullptr, a.L, a.all_ask ? 0 : 1, 3, groups.tasks_of_rows(a.L, a.threads)},
            {a.query_rows, a.Q, 0, 1, a.all_ask ? 0 : groups.tasks_of_rows(a.Q, a.threads)}},
      together_(columns_together(a)),
      weights_(a.linear, a.in_place, packed) {}

template <typename T>
Stage NormQkvRope<T>::rows() const {
  const auto run = [](const void* context, int64_t group, int64_t task, char* scratch) {
    const NormQkvRope& self = *static_cast<const NormQkvRope*>(context);
    const bool is_second = task >= self.jobs_[0].tasks;
    self.project_rows(self.jobs_[is_second], group, is_second ? task - self.jobs_[0].tasks : task, scratch);
  };
  return {groups_.count(), jobs_[0].tasks + jobs_[1].tasks, run, this};
}

template <typename T>
void NormQkvRope<T>::finish_columns(const Columns& of, const Origin* origins, int64_t count, int64_t row, int64_t first,
                                    const float* sums) const {
  // Out of reach of the stores, which for all the compiler knows may change this object.
  const int64_t stride = together_, N = args_.linear[of.projection].N, d = args_.head_dim, columns = of.count;
  const T* bias = bias_of<T>(args_.linear[of.projection], of.first);
  T* out = static_cast<T*>(args_.out[of.projection]) + row * N + of.first;
  if (of.projection == 2) {
    for (int64_t i = 0; i < count; ++i)
      store_layer(Layer<T>{sums + (origins[i].row - first) * stride, bias}, columns, out + origins[i].place * N);
    return;
  }
  const float *cosine = args_.cosine, *sine = args_.sine;
  const bool full_precision = args_.full_precision;
  for (int64_t i = 0; i < count; ++i) {
    const Layer<T> projected{sums + (origins[i].row - first) * stride, bias};
    const float *own_cosine = cosine + origins[i].table, *own_sine = sine + origins[i].table;
    for (int64_t c = 0; c < columns; c += d) {
      rotate(projected, c, own_cosine, own_sine, d, full_precision, out + origins[i].place * N + c);
    }
  }
}

template <typename T>
void NormQkvRope<T>::project_rows(const Job& job, int64_t group, int64_t task, char* scratch) const {
  using A = Operand<T>;
  const QkvArgs& a = args_;
  const Range range = groups_.rows_of(group, task, job.tasks, job.count);
  const int64_t stride = padded<A>(a.D);
  float* sums = reinterpret_cast<float*>(scratch);
  A* normed = reinterpret_cast<A*>(scratch + kRunRows * together_ * sizeof(float));
  Origin origins[kTaskRows];
  const T* rows[kTaskRows];
  int64_t different = 0;
  uint8_t known[kPlaces] = {};  // by a row's hash, one more than which of the different rows it may be
  for (int64_t i = 0; i < range.count; ++i) {
    const int64_t r = range.first + i, b = r / job.count, l = job.rows == nullptr ? r % job.count : job.rows[r];
    const T* x = static_cast<const T*>(a.x) + b * a.x_batch_stride + l * a.x_row_stride;
    // In the first layer equal tokens, masks and the shadow block above all, are one row many times over: multiplied
    // once.
    uint8_t* place = known + place_of(x, a.D);
    if (*place == 0 || memcmp(rows[*place - 1], x, a.D * sizeof(T)) != 0) {
      rows[different++] = x;
      *place = static_cast<uint8_t>(different);
    }
    origins[i] = {*place - 1, b * a.table_batch_stride + l * a.table_row_stride, i};
  }
  sort_by_row(origins, range.count, different);
  norm_operands(rows, different, static_cast<const T*>(a.norm_weight), a.eps, a.D, normed, stride);
  const TaskRows<A> operands{normed, stride, different, reinterpret_cast<uint32_t*>(normed + kTaskRows * stride)};
  weights_.prepare(operands, a.D);
  for (int projection = job.first; projection < job.last; ++projection) {
    const int64_t N = a.linear[projection].N;
    for (int64_t n = 0; n < N; n += together_) {
      const Columns columns{projection, n, N - n < together_ ? N - n : together_};
      int64_t done = 0;
      weights_.for_each_run(different, [&](int64_t first, int64_t number) {
        for (int64_t c = 0; c < columns.count; c += kPanel) {
          weights_.multiply(projection, n + c, operands, {first, number}, sums + c, together_);
        }
        int64_t end = done;
        while (end < range.count && origins[end].row < first + number) ++end;
        finish_columns(columns, origins + done, end - done, range.first, first, sums);
        done = end;
      });
    }
  }
}

template class NormQkvRope<float>;
template class NormQkvRope<BFloat16>;

int64_t norm_qkv_rope_bytes(const QkvArgs& a) {
  return a.dtype == kBFloat16 ? bytes_alone<NormQkvRope<BFloat16>>(a) : bytes_alone<NormQkvRope<float>>(a);
}

void norm_qkv_rope(const QkvArgs& a, void* scratch) {
  if (a.dtype == kBFloat16) return run_alone<NormQkvRope<BFloat16>>(a, scratch);
  run_alone<NormQkvRope<float>>(a, scratch);
}

WINO_CPU_END
