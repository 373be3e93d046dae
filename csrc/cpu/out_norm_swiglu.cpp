// What becomes of a row after attention: output projection, residual, norm, gated MLP, residual.
#include "cpu/out_norm_swiglu.h"

#include "cpu/operators.h"
#include "cpu/row_math.h"

WINO_CPU_BEGIN

namespace {

enum Linear { kOut, kGate, kUp, kDown };

// Rows of one task: what goes into a product, between the two residuals, and out of the gate.
template <typename T>
struct Buffers {
  using A = Operand<T>;
  int64_t in_stride, middle_stride;
  int64_t in_bytes, residual_bytes, middle_bytes, sums_bytes, panels_bytes;

  explicit Buffers(const MlpArgs& a) {
    const int64_t widest = a.linear[kOut].K > a.D ? a.linear[kOut].K : a.D;
    in_stride = padded<A>(widest);
    middle_stride = padded<A>(a.linear[kDown].K);
    in_bytes = aligned(kTaskRows * in_stride * static_cast<int64_t>(sizeof(A)));
    residual_bytes = aligned(kTaskRows * a.D * static_cast<int64_t>(sizeof(T)));
    middle_bytes = aligned(kTaskRows * middle_stride * static_cast<int64_t>(sizeof(A)));
    sums_bytes = aligned(2 * kRunRows * kPanel * static_cast<int64_t>(sizeof(float)));
    panels_bytes = !a.in_place ? 0 : in_bytes > middle_bytes ? in_bytes : middle_bytes;
  }
  int64_t total() const { return in_bytes + residual_bytes + middle_bytes + sums_bytes + panels_bytes; }
};

template <typename T, typename A>
void gather_heads(const MlpArgs& a, int64_t row, A* to) {
  const int64_t heads = a.linear[kOut].K / a.head_dim;
  const int64_t among = a.attended_rows == nullptr ? row % a.L : a.attended_rows[row];
  const T* from =
      static_cast<const T*>(a.attended) + row / a.L * a.attended_batch_stride + among * a.attended_row_stride;
  for (int64_t h = 0; h < heads; ++h)
    store_operands(from + h * a.attended_head_stride, a.head_dim, to + h * a.head_dim);
  pad_row(to, heads * a.head_dim);
}

}  // namespace

template <typename T>
int64_t OutNormSwiglu<T>::thread_bytes(const MlpArgs& a) {
  return Buffers<T>(a).total();
}

template <typename T>
Stage OutNormSwiglu<T>::rows() const {
  const auto run = [](const void* self, int64_t group, int64_t task, char* scratch) {
    static_cast<const OutNormSwiglu*>(self)->transform_rows(group, task, scratch);
  };
  return {groups_.count(), tasks_, run, this};
}

template <typename T>
void OutNormSwiglu<T>::transform_rows(int64_t group, int64_t task, char* scratch) const {
  using A = Operand<T>;
  const MlpArgs& a = args_;
  const Buffers<T> size(a);
  A* in = reinterpret_cast<A*>(scratch);
  T* residual = reinterpret_cast<T*>(scratch + size.in_bytes);
  A* middle = reinterpret_cast<A*>(scratch + size.in_bytes + size.residual_bytes);
  float* sums = reinterpret_cast<float*>(scratch + size.in_bytes + size.residual_bytes + size.middle_bytes);
  uint32_t* panels = reinterpret_cast<uint32_t*>(reinterpret_cast<char*>(sums) + size.sums_bytes);
  const Range range = groups_.rows_of(group, task, tasks_, a.L);
  const int64_t first = range.first, count = range.count, inner = a.linear[kDown].K, D = a.D;

  const TaskRows<A> entering{in, size.in_stride, count, panels}, gated{middle, size.middle_stride, count, panels};
  // The sums of a run of rows in columns n ... n + kPanel of a layer; what becomes of them follows at once.
  const auto multiply = [&](Linear which, const TaskRows<A>& rows, int64_t n, Range run, float* to) {
    weights_.multiply(which, n, rows, run, to, kPanel);
  };
  const auto for_each_run_of_columns = [&](int64_t N, const auto& f) {
    for (int64_t n = 0; n < N; n += kPanel) {
      weights_.for_each_run(count, [&](int64_t begin, int64_t number) { f(n, Range{begin, number}); });
    }
  };
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = first + i, among = a.x_rows == nullptr ? row % a.L : a.x_rows[row];
    const T* x = static_cast<const T*>(a.x) + row / a.L * a.x_batch_stride + among * a.x_row_stride;
    store_operands(x, D, residual + i * D);
    gather_heads<T>(a, row, in + i * size.in_stride);
  }
  weights_.prepare(entering, a.linear[kOut].K);
  for_each_run_of_columns(D, [&](int64_t n, Range run) {
    multiply(kOut, entering, n, run, sums);
    T* both = residual + run.first * D + n;
    add_residual(both, LayerPanel<T>(sums, a.linear[kOut], n), run.count, D, both);
  });
  const T* rows[kTaskRows];
  for (int64_t i = 0; i < count; ++i) rows[i] = residual + i * D;
  norm_operands(rows, count, static_cast<const T*>(a.norm_weight), a.eps, D, in, size.in_stride);
  weights_.prepare(entering, D);
  float* up = sums + kRunRows * kPanel;
  for_each_run_of_columns(inner, [&](int64_t n, Range run) {
    multiply(kGate, entering, n, run, sums);
    multiply(kUp, entering, n, run, up);
    const LayerPanel<T> gate_panel(sums, a.linear[kGate], n), up_panel(up, a.linear[kUp], n);
    swiglu(gate_panel, up_panel, run.count, middle + run.first * size.middle_stride + n, size.middle_stride);
  });
  for (int64_t i = 0; i < count; ++i) pad_row(middle + i * size.middle_stride, inner);
  weights_.prepare(gated, inner);
  for_each_run_of_columns(D, [&](int64_t n, Range run) {
    multiply(kDown, gated, n, run, sums);
    T* to = static_cast<T*>(a.out) + (first + run.first) * D + n;
    add_residual(residual + run.first * D + n, LayerPanel<T>(sums, a.linear[kDown], n), run.count, D, to);
  });
}

template class OutNormSwiglu<float>;
template class OutNormSwiglu<BFloat16>;

int64_t out_norm_swiglu_bytes(const MlpArgs& a) {
  return a.dtype == kBFloat16 ? bytes_alone<OutNormSwiglu<BFloat16>>(a) : bytes_alone<OutNormSwiglu<float>>(a);
}

void out_norm_swiglu(const MlpArgs& a, void* scratch) {
  if (a.dtype == kBFloat16) return run_alone<OutNormSwiglu<BFloat16>>(a, scratch);
  run_alone<OutNormSwiglu<float>>(a, scratch);
}

WINO_CPU_END
