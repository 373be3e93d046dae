// What is done to a row between two products, each result rounded to the dtype T as separate operations would round it.
#pragma once

#include "cpu/matrix.h"

WINO_CPU_BEGIN

template <typename T>
struct Round;

template <>
struct Round<float> {
  WINO_MEMBER static float one(float x) { return x; }
  WINO_MEMBER static Vec::F all(Vec::F x) { return x; }
  WINO_MEMBER static void store(float* to, Vec::F x) { Vec::store(to, x); }
  WINO_MEMBER static void store_one(float* to, float x) { *to = x; }
};

template <>
struct Round<BFloat16> {
  WINO_MEMBER static float one(float x) { return rounded<BFloat16>(x); }
  WINO_MEMBER static Vec::F all(Vec::F x) { return Vec::round_bfloat16(x); }
  WINO_MEMBER static void store(BFloat16* to, Vec::F x) { Vec::store_bfloat16(to, x); }
  WINO_MEMBER static void store(float* to, Vec::F x) { Vec::store(to, all(x)); }  // an operand of a product
  template <typename A>
  WINO_MEMBER static void store_one(A* to, float x) {
    from_float(one(x), to);
  }
};

template <>
struct Round<Float16> {
  WINO_MEMBER static float one(float x) { return rounded<Float16>(x); }
  WINO_MEMBER static Vec::F all(Vec::F x) { return Vec::round_float16(x); }
  WINO_MEMBER static void store(Float16* to, Vec::F x) { Vec::store_float16(to, x); }
};

// What a linear layer returns for a row: sum + bias, rounded. bias may be nullptr.
template <typename T>
struct Layer {
  const float* sum;
  const T* bias;

  WINO_MEMBER Vec::F all(int64_t i) const {
    const Vec::F x = Vec::load(sum + i);
    return Round<T>::all(bias == nullptr ? x : Vec::add(x, Vec::load(bias + i)));
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

// Root-mean-square norm of x (n,), computed in float32 and rounded before the weight is applied. to may be x.
template <typename T, typename A>
WINO_HD void rms_norm(const T* x, const T* weight, float eps, int64_t n, A* to) {
  const float scale = 1.0f / sqrtf(sum_of_squares(x, n) / static_cast<float>(n) + eps);
  const Vec::F scales = Vec::splat(scale);
  int64_t i = 0;
  for (; i + Vec::N <= n; i += Vec::N) {
    const Vec::F normed = Round<T>::all(Vec::mul(Vec::load(x + i), scales));
    Round<T>::store(to + i, Vec::mul(Vec::load(weight + i), normed));
  }
  for (; i < n; ++i) Round<T>::store_one(to + i, to_float(weight[i]) * Round<T>::one(to_float(x[i]) * scale));
}

template <typename T>
WINO_HD void store_layer(const Layer<T>& y, int64_t n, T* to) {
  int64_t i = 0;
  for (; i + Vec::N <= n; i += Vec::N) Round<T>::store(to + i, y.all(i));
  for (; i < n; ++i) Round<T>::store_one(to + i, y.one(i));
}

// x + y.
template <typename T>
WINO_HD void add_residual(const T* x, const Layer<T>& y, int64_t n, T* to) {
  int64_t i = 0;
  for (; i + Vec::N <= n; i += Vec::N) Round<T>::store(to + i, Vec::add(Vec::load(x + i), y.all(i)));
  for (; i < n; ++i) Round<T>::store_one(to + i, to_float(x[i]) + y.one(i));
}

// silu(gate) * up.
template <typename T, typename A>
WINO_HD void swiglu(const Layer<T>& gate, const Layer<T>& up, int64_t n, A* to) {
  const auto silu = [](Vec::F g) {
    const Vec::F shrunk = power_of_two(Vec::min(Vec::mul(g, Vec::splat(-kLog2OfE)), Vec::splat(120.0f)));
    return Round<T>::all(Vec::mul(g, Vec::reciprocal(Vec::add(Vec::splat(1.0f), shrunk))));
  };
  int64_t i = 0;
  for (; i + Vec::N <= n; i += Vec::N) Round<T>::store(to + i, Vec::mul(silu(gate.all(i)), up.all(i)));
  for (; i < n; ++i) {
    float gated[Vec::N];
    Vec::store(gated, silu(Vec::splat(gate.one(i))));
    Round<T>::store_one(to + i, gated[0] * up.one(i));
  }
}

// Rotary embedding of the head at x[first ... first + d].
template <typename T>
WINO_HD void rotate(const Layer<T>& x, int64_t first, const float* cosine, const float* sine, int64_t d,
                    bool full_precision, T* to) {
  using R = Round<T>;
  const int64_t half = d / 2;
  int64_t i = 0;
  for (; i + Vec::N <= half; i += Vec::N) {
    const Vec::F own[2] = {x.all(first + i), x.all(first + half + i)};
    const Vec::F turned[2] = {Vec::sub(Vec::splat(0.0f), own[1]), own[0]};
    for (int k = 0; k < 2; ++k) {
      const Vec::F c = Vec::load(cosine + k * half + i), s = Vec::load(sine + k * half + i);
      const Vec::F sum = full_precision
                             ? Vec::add(Vec::mul(own[k], c), Vec::mul(turned[k], s))
                             : Vec::add(R::all(Vec::mul(own[k], R::all(c))), R::all(Vec::mul(turned[k], R::all(s))));
      R::store(to + k * half + i, sum);
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
