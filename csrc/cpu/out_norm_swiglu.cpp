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
  int64_t in_bytes, residual_bytes, middle_bytes, sums_bytes;

  explicit Buffers(const MlpArgs& a) {
    const int64_t widest = a.linear[kOut].K > a.D ? a.linear[kOut].K : a.D;
    in_stride = padded<A>(widest);
    middle_stride = padded<A>(a.linear[kDown].K);
    in_bytes = aligned(kTaskRows * in_stride * static_cast<int64_t>(sizeof(A)));
    residual_bytes = aligned(kTaskRows * a.D * static_cast<int64_t>(sizeof(T)));
    middle_bytes = aligned(kTaskRows * middle_stride * static_cast<int64_t>(sizeof(A)));
    sums_bytes = aligned(2 * kTaskRows * kPanel * static_cast<int64_t>(sizeof(float)));
  }
  int64_t total() const { return in_bytes + residual_bytes + middle_bytes + sums_bytes; }
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
  const Range range = groups_.rows_of(group, task, tasks_, a.L);
  const int64_t first = range.first, count = range.count, inner = a.linear[kDown].K;

  // sums[.][stride] of columns n ... n + kPanel of a layer.
  const auto multiply = [&](Linear which, const A* from, int64_t stride, int64_t n, float* to) {
    multiply_panel(from, count, stride, weights_.panel(which, n), a.linear[which].K, to, kPanel);
  };
  const auto layer = [&](Linear which, const float* of, int64_t i, int64_t n) {
    return Layer<T>{of + i * kPanel, bias_of<T>(a.linear[which], n)};
  };
  const auto width = [](int64_t N, int64_t n) { return N - n < kPanel ? N - n : static_cast<int64_t>(kPanel); };

  const T* x[kTaskRows];
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = first + i, among = a.x_rows == nullptr ? row % a.L : a.x_rows[row];
    x[i] = static_cast<const T*>(a.x) + row / a.L * a.x_batch_stride + among * a.x_row_stride;
    gather_heads<T>(a, row, in + i * size.in_stride);
  }
  for (int64_t n = 0; n < a.D; n += kPanel) {
    multiply(kOut, in, size.in_stride, n, sums);
    for (int64_t i = 0; i < count; ++i) {
      add_residual(x[i] + n, layer(kOut, sums, i, n), width(a.D, n), residual + i * a.D + n);
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    rms_norm(residual + i * a.D, static_cast<const T*>(a.norm_weight), a.eps, a.D, in + i * size.in_stride);
    pad_row(in + i * size.in_stride, a.D);
  }
  float* up = sums + kTaskRows * kPanel;
  for (int64_t n = 0; n < inner; n += kPanel) {
    multiply(kGate, in, size.in_stride, n, sums);
    multiply(kUp, in, size.in_stride, n, up);
    for (int64_t i = 0; i < count; ++i) {
      A* to = middle + i * size.middle_stride + n;
      swiglu(layer(kGate, sums, i, n), layer(kUp, up, i, n), width(inner, n), to);
    }
  }
  for (int64_t i = 0; i < count; ++i) pad_row(middle + i * size.middle_stride, inner);
  for (int64_t n = 0; n < a.D; n += kPanel) {
    multiply(kDown, middle, size.middle_stride, n, sums);
    for (int64_t i = 0; i < count; ++i) {
      T* out = static_cast<T*>(a.out) + (first + i) * a.D + n;
      add_residual(residual + i * a.D + n, layer(kDown, sums, i, n), width(a.D, n), out);
    }
  }
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
