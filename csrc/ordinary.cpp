#include "ordinary.h"

#include <cstdlib>
#include <functional>
#include <memory>
#include <new>
#include <numeric>
#include <utility>

#include "cpu/select.h"
#include "exchange.h"
#include "scratch.h"

namespace py = pybind11;

namespace wino {
namespace ordinary {
namespace {

using namespace exchange;

// A new int32 tensor of shape [B] and what it owns; the framework calls the deleter when the tensor dies.
struct Counters {
  struct Delete {
    void operator()(Counters* c) const { c->managed.deleter(&c->managed); }
  };
  using Owned = std::unique_ptr<Counters, Delete>;

  dlpack::ManagedTensor managed;
  int64_t shape, stride;
  int32_t values[1];  // [B]

  static Owned make(int64_t B) {
    void* memory = std::malloc(sizeof(Counters) + static_cast<size_t>(B) * sizeof(int32_t));
    if (memory == nullptr) throw std::bad_alloc();
    auto* c = new (memory) Counters{};
    c->shape = B;
    c->stride = 1;
    c->managed.version = exchange::api().version;
    c->managed.manager_context = c;
    c->managed.deleter = [](dlpack::ManagedTensor* self) { std::free(self->manager_context); };
    c->managed.tensor = {c->values, {dlpack::kCpu, 0}, 1, kInt32, &c->shape, &c->stride, 0};
    return Owned(c);
  }

  static object to_object(Owned counters) {
    void* tensor = nullptr;
    if (exchange::api().to_object(&counters.release()->managed, &tensor) != 0) throw py::error_already_set();
    return py::reinterpret_steal<object>(static_cast<PyObject*>(tensor));
  }
};

// The kernels' name of a dtype; -1: none has it.
int number_of(DataType dtype) {
  if (same(dtype, kFloat32)) return cpu::kFloat32;
  if (same(dtype, kBFloat16)) return cpu::kBFloat16;
  return same(dtype, kFloat16) ? cpu::kFloat16 : -1;
}

// Views `object`, one value or one of each row, if it is a dense CPU tensor of that dtype.
bool view_per_row(const object& values, DataType dtype, const Tensor& like, Tensor* out) {
  return view(values, dtype, out) && (out->ndim == 0 || has_shape(*out, like.shape, like.shape + like.ndim));
}

}  // namespace

object accept_remask(const object& tokens, const object& masked, const object& revocable, const object& token_ids,
                     const object& confidence, const object& last, int64_t mask_id, const object& threshold,
                     const object& threshold_back, int64_t numerator, int64_t denominator, int64_t min_accept,
                     int64_t max_accept, bool verify_last, int threads) {
  Tensor x, m, u, t, c, l, accept, back;
  if (!view(tokens, kInt64, &x) || x.ndim != 2) return py::none();
  const int64_t B = x.shape[0], K = x.shape[1];
  const auto is_block = [&](const Tensor& tensor) { return has_shape(tensor, {B, K}); };
  const bool dense = view(masked, kBool, &m) && is_block(m) && view(revocable, kBool, &u) && is_block(u) &&
                     view(token_ids, kInt64, &t) && is_block(t) && view(confidence, kFloat64, &c) && is_block(c) &&
                     view(last, kInt32, &l) && has_shape(l, {B}) && view_per_row(threshold, kFloat32, l, &accept) &&
                     view_per_row(threshold_back, kFloat32, l, &back);
  const bool valid = mask_id >= 0 && 0 <= numerator && numerator <= denominator && min_accept >= 0 && max_accept >= 1;
  if (!dense || !valid || (m.data == u.data && B * K > 0)) return py::none();

  Counters::Owned accepted = Counters::make(B), remasked = Counters::make(B), status = Counters::make(B);
  {
    const py::gil_scoped_release release;
    cpu::kernels().accept_remask({{B, K, data<int64_t>(x), K, data<bool>(m), K, data<int64_t>(t), K, data<double>(c), K,
                                   accepted->values, remasked->values, status->values, threads},
                                  data<bool>(u),
                                  K,
                                  data<int32_t>(l),
                                  1,
                                  mask_id,
                                  data<float>(accept),
                                  accept.ndim,
                                  data<float>(back),
                                  back.ndim,
                                  {numerator, denominator, min_accept, max_accept},
                                  verify_last});
  }
  return py::make_tuple(Counters::to_object(std::move(accepted)), Counters::to_object(std::move(remasked)),
                        Counters::to_object(std::move(status)));
}

bool linear_score_tokens(const object& hidden, const object& weight, const object& candidate_ids, const object& bias,
                         const object& temperature, const object& seed, int round_to, const object& token_ids,
                         const object& confidence, int threads) {
  Tensor in, head, candidates, added{}, heat{}, seeds{}, ids, sure;
  if (!view(hidden, &in) || in.ndim < 1 || !is_dense(in) || number_of(in.dtype) < 0) return false;
  if (!view(candidate_ids, kInt64, &candidates)) return false;
  const int64_t H = in.shape[in.ndim - 1];
  const int64_t rows = std::accumulate(in.shape, in.shape + in.ndim - 1, int64_t{1}, std::multiplies<int64_t>());
  const auto is_per_row = [&](const Tensor& tensor) { return has_shape(tensor, in.shape, in.shape + in.ndim - 1); };
  if (H < 1 || rows < 1 || !is_per_row(candidates)) return false;
  if (!view(weight, &head) || head.ndim != 2) return false;
  const int64_t V = head.shape[0];
  const bool draws = !temperature.is_none();
  const bool valid =
      V >= 1 && V <= INT32_MAX && is_rows(head, in.dtype, {V, H}) &&
      (bias.is_none() || view_rows(bias, in.dtype, {V}, &added)) && draws == !seed.is_none() &&
      (!draws ||
       (view_per_row(temperature, kFloat32, candidates, &heat) && view(seed, kInt64, &seeds) && is_per_row(seeds))) &&
      view(token_ids, kInt64, &ids) && is_per_row(ids) && view(confidence, kFloat64, &sure) && is_per_row(sure);
  if (!valid) return false;
  const cpu::HeadArgs args{number_of(in.dtype),
                           round_to < 0 ? number_of(in.dtype) : round_to,
                           rows,
                           H,
                           in.data,
                           {head.data, added.data, V, H, head.strides[0]},
                           data<int64_t>(candidates),
                           {data<float>(heat), heat.ndim > 0 ? 1 : 0},
                           data<int64_t>(seeds),
                           data<int64_t>(ids),
                           data<double>(sure),
                           threads};
  const py::gil_scoped_release release;
  const cpu::Kernels& chosen = cpu::kernels();
  chosen.linear_score_tokens(args, cpu::Scratch(chosen.linear_score_tokens_bytes(args)).begin());
  return true;
}

}  // namespace ordinary
}  // namespace wino
