// What is done to a row between two products, each result rounded to the dtype T as separate operations would round it.
#pragma once

#include "cpu/matrix.h"

WINO_CPU_BEGIN

template <typename T>
struct Round;

template <>
struct Round<float> {
  WINO_MEMBER static float one(float x) { return x; }
  template <int W>
  WINO_MEMBER static void all(Vec::F (&)[W]) {}
  template <int W>
  WINO_MEMBER static void store(const Vec::F (&x)[W], float* to) {
    WINO_ISA::store(x, to);
  }
  WINO_MEMBER static void store_one(float* to, float x) { *to = x; }
};

template <>
struct Round<BFloat16> {
  WINO_MEMBER static float one(float x) { return rounded<BFloat16>(x); }
  template <int W>
  WINO_MEMBER static void all(Vec::F (&x)[W]) {
    round_bfloat16(x);
  }
  template <int W>
  WINO_MEMBER static void store(const Vec::F (&x)[W], BFloat16* to) {
    WINO_ISA::store(x, to);
  }
  template <int W>
  WINO_MEMBER static void store(const Vec::F (&x)[W], float* to) {  // an operand of a product
    for (int k = 0; k < W; ++k) Vec::store(to + k * Vec::N, Vec::round_bfloat16(x[k]));
  }
  template <typename A>
  WINO_MEMBER static void store_one(A* to, float x) {
    from_float(one(x), to);
  }
};

template <>
struct Round<Float16> {
  WINO_MEMBER static float one(float x) { return rounded<Float16>(x); }
  template <int W>
  WINO_MEMBER static void all(Vec::F (&x)[W]) {
    for (Vec::F& each : x) each = Vec::round_float16(each);
  }
  template <int W>
  WINO_MEMBER static void store(const Vec::F (&x)[W], Float16* to) {
    WINO_ISA::store(x, to);
  }
};

// Some columns of a row, or what a linear layer returns for them: sum + bias, rounded. bias may be nullptr.
template <typename T>
struct Layer {
  const float* sum;
  const T* bias;

  // Vectors from columns i, i + apart, ... on.
  template <int W>
  WINO_MEMBER void load_apart(int64_t i, int64_t apart, Vec::F (&x)[W]) const {
    for (int k = 0; k < W; ++k) x[k] = Vec::load(sum + i + k * apart);
    for (int k = 0; k < W && bias != nullptr; ++k) x[k] = Vec::add(x[k], Vec::load(bias + i + k * apart));
    Round<T>::all(x);
  }
  WINO_MEMBER float one(int64_t i) const {
    return Round<T>::one(bias == nullptr ? sum[i] : sum[i] + to_float(bias[i]));
  }
};

template <typename T>
WINO_HD const T* bias_of(const LinearArgs& linear, int64_t n) {
  return linear.bias == nullptr ? nullptr : static_cast<const T*>(linear.bias) + n;
}

template <typename T>
WINO_HD float sum_of_squares(const T* x, int64_t n) {
  Vec::F total[2] = {Vec::splat(0.0f), Vec::splat(0.0f)};
  int64_t i = 0;
  for (; i + 2 * Vec::N <= n; i += 2 * Vec::N) {
    for (int k = 0; k < 2; ++k) {
      const Vec::F value = Vec::load(x + i + k * Vec::N);
      total[k] = Vec::fma(value, value, total[k]);
    }
  }
  float sum = Vec::sum(Vec::add(total[0], total[1]));
  for (; i < n; ++i) sum += to_float(x[i]) * to_float(x[i]);
  return sum;
}

// What a row x (n,) is multiplied by to have a mean square of one.
template <typename T>
WINO_HD float rms_scale(const T* x, float eps, int64_t n) {
  return 1.0f / sqrtf(sum_of_squares(x, n) / static_cast<float>(n) + eps);
}

// x times its scale, rounded before the weight is applied. to may be x.
template <typename T, typename A>
WINO_HD void scale_row(const T* x, float scale, const T* weight, int64_t n, A* to) {
  int64_t i = for_vectors(n, [&](auto count, int64_t first) {
    Vec::F normed[count.n], weights[count.n];
    load(x + first, normed);
    load(weight + first, weights);
    for (Vec::F& each : normed) each = Vec::mul(each, Vec::splat(scale));
    Round<T>::all(normed);
    for (int k = 0; k < count.n; ++k) normed[k] = Vec::mul(weights[k], normed[k]);
    Round<T>::store(normed, to + first);
  });
  for (; i < n; ++i) Round<T>::store_one(to + i, to_float(weight[i]) * Round<T>::one(to_float(x[i]) * scale));
}

// The norms of rows x[0], ... x[count - 1] as operands, `stride` apart. All scales first: what one of them takes hides
// behind the others.
template <typename T, typename A>
void norm_operands(const T* const* x, int64_t count, const T* weight, float eps, int64_t n, A* to, int64_t stride) {
  float scales[kTaskRows];
  for (int64_t i = 0; i < count; ++i) scales[i] = rms_scale(x[i], eps, n);
  for (int64_t i = 0; i < count; ++i) {
    scale_row(x[i], scales[i], weight, n, to + i * stride);
    pad_row(to + i * stride, n);
  }
}

template <typename T>
WINO_HD void store_layer(const Layer<T>& y, int64_t n, T* to) {
  int64_t i = for_vectors(n, [&](auto count, int64_t first) {
    Vec::F own[count.n];
    y.load_apart(first, Vec::N, own);
    Round<T>::store(own, to + first);
  });
  for (; i < n; ++i) Round<T>::store_one(to + i, y.one(i));
}

// A panel's columns of a row, of which the first `width` are there.
template <typename T>
WINO_HD void load_columns(const T* from, int64_t width, Vec::F (&x)[2]) {
  if (width == kPanel) return load(from, x);
  T all[kPanel] = {};
  memcpy(all, from, width * sizeof(T));
  load(all, x);
}
template <typename T, typename A>
WINO_HD void store_columns(const Vec::F (&x)[2], int64_t width, A* to) {
  if (width == kPanel) return Round<T>::store(x, to);
  A all[kPanel];
  Round<T>::store(x, all);
  memcpy(to, all, width * sizeof(A));
}

// What a linear layer returns for a run of rows in the columns n ... n + width of a panel.
template <typename T>
struct LayerPanel {
  const float* sums;  // [rows][kPanel]
  int64_t width;
  Vec::F bias[2];
  bool has_bias;

  LayerPanel(const float* sums, const LinearArgs& linear, int64_t n)
      : sums(sums), width(linear.N - n < kPanel ? linear.N - n : kPanel), has_bias(linear.bias != nullptr) {
    if (has_bias) load_columns(static_cast<const T*>(linear.bias) + n, width, bias);
  }

  // Of the rows from `row` on.
  template <int R>
  WINO_MEMBER void load_rows(int64_t row, Vec::F (&x)[2 * R]) const {
    load(sums + row * kPanel, x);
    for (int k = 0; k < 2 * R && has_bias; ++k) x[k] = Vec::add(x[k], bias[k % 2]);
    Round<T>::all(x);
  }
};

// Rows `stride` apart of x + y; to may be x.
template <typename T>
WINO_HD void add_residual(const T* x, const LayerPanel<T>& y, int64_t rows, int64_t stride, T* to) {
  for (int64_t row = 0; row < rows; ++row, x += stride, to += stride) {
    Vec::F own[2], added[2];
    load_columns(x, y.width, own);
    y.template load_rows<1>(row, added);
    for (int k = 0; k < 2; ++k) own[k] = Vec::add(own[k], added[k]);
    store_columns<T>(own, y.width, to);
  }
}

template <int W>
WINO_HD void silu(Vec::F (&x)[W]) {
  Vec::F shrunk[W];
  for (int k = 0; k < W; ++k) shrunk[k] = Vec::mul(x[k], Vec::splat(-kLog2OfE));
  for (int k = 0; k < W; ++k) shrunk[k] = Vec::min(shrunk[k], Vec::splat(120.0f));
  power_of_two(shrunk);
  for (int k = 0; k < W; ++k) shrunk[k] = Vec::add(Vec::splat(1.0f), shrunk[k]);
  for (int k = 0; k < W; ++k) shrunk[k] = Vec::reciprocal(shrunk[k]);
  for (int k = 0; k < W; ++k) x[k] = Vec::mul(x[k], shrunk[k]);
}

// Rows `stride` apart of silu(gate) * up.
template <typename T, typename A>
WINO_HD void swiglu(const LayerPanel<T>& gate, const LayerPanel<T>& up, int64_t rows, A* to, int64_t stride) {
  in_twos<1>(rows, [&](auto count, int64_t row) __attribute__((always_inline)) {
    Vec::F gated[2 * count.n], factor[2 * count.n];
    gate.template load_rows<count.n>(row, gated);
    silu(gated);
    Round<T>::all(gated);
    up.template load_rows<count.n>(row, factor);
    for (int k = 0; k < 2 * count.n; ++k) gated[k] = Vec::mul(gated[k], factor[k]);
    for (int r = 0; r < count.n; ++r) {
      const Vec::F own[2] = {gated[2 * r], gated[2 * r + 1]};
      store_columns<T>(own, gate.width, to + (row + r) * stride);
    }
  });
}

// Number i of a head's first half and of its second, rotated by the angles of both.
template <typename T>
WINO_HD void rotate_pairs(Vec::F left, Vec::F right, Vec::F (&cosine)[2], Vec::F (&sine)[2], bool full_precision,
                          Vec::F (&turned)[2]) {
  if (!full_precision) {
    Round<T>::all(cosine);
    Round<T>::all(sine);
  }
  Vec::F straight[2] = {Vec::mul(left, cosine[0]), Vec::mul(right, cosine[1])};
  Vec::F across[2] = {Vec::mul(right, sine[0]), Vec::mul(left, sine[1])};
  if (!full_precision) {
    Round<T>::all(straight);
    Round<T>::all(across);
  }
  turned[0] = Vec::sub(straight[0], across[0]);
  turned[1] = Vec::add(straight[1], across[1]);
}

// Rotary embedding of the head at x[first ... first + d].
template <typename T>
WINO_HD void rotate(const Layer<T>& x, int64_t first, const float* cosine, const float* sine, int64_t d,
                    bool full_precision, T* to) {
  using R = Round<T>;
  const int64_t half = d / 2;
  int64_t i = 0;
  for (; i + Vec::N <= half; i += Vec::N) {
    Vec::F own[2], turned[2], c[2] = {Vec::load(cosine + i), Vec::load(cosine + half + i)};
    Vec::F s[2] = {Vec::load(sine + i), Vec::load(sine + half + i)};
    x.load_apart(first + i, half, own);
    rotate_pairs<T>(own[0], own[1], c, s, full_precision, turned);
    if (half == Vec::N) return R::store(turned, to);
    for (int k = 0; k < 2; ++k) {
      const Vec::F each[1] = {turned[k]};
      R::store(each, to + k * half + i);
    }
  }
  for (; i < half; ++i) {
    const float own[2] = {x.one(first + i), x.one(first + half + i)}, turned[2] = {-own[1], own[0]};
    for (int k = 0; k < 2; ++k) {
      const float c = cosine[k * half + i], s = sine[k * half + i];
      const float sum =
          full_precision ? own[k] * c + turned[k] * s : R::one(own[k] * R::one(c)) + R::one(turned[k] * R::one(s));
      R::store_one(to + k * half + i, sum);
    }
  }
}

WINO_CPU_END
