#include "exchange.h"

#include <cstdlib>
#include <memory>
#include <new>
#include <utility>

#include "cpu/select.h"
#include "dlpack.h"

namespace py = pybind11;

namespace wino {
namespace {

using dlpack::DataType;
using dlpack::Tensor;

constexpr DataType kInt64{dlpack::kInt, 64, 1}, kInt32{dlpack::kInt, 32, 1}, kFloat32{dlpack::kFloat, 32, 1},
    kBool{dlpack::kBool, 8, 1};

const dlpack::ExchangeApi* g_api = nullptr;

bool same(DataType a, DataType b) { return a.code == b.code && a.bits == b.bits && a.lanes == b.lanes; }

// Views `object` if it is a dense CPU tensor of that dtype.
bool view(const py::object& object, DataType dtype, Tensor* out) {
  if (g_api->view_of_object(object.ptr(), out) != 0) {
    PyErr_Clear();  // the caller's slow path finds out what is wrong with it
    return false;
  }
  if (out->device.type != dlpack::kCpu || !same(out->dtype, dtype)) return false;
  out->data = static_cast<char*>(out->data) + out->byte_offset;
  int64_t dense = 1;
  for (int32_t d = out->ndim - 1; d >= 0; --d) {
    if (out->shape[d] != 1 && out->strides[d] != dense) return false;
    dense *= out->shape[d];
  }
  return true;
}

bool is_block(const Tensor& t, int64_t B, int64_t K) { return t.ndim == 2 && t.shape[0] == B && t.shape[1] == K; }

bool is_per_row(const Tensor& t, int64_t B) { return t.ndim == 0 || (t.ndim == 1 && t.shape[0] == B); }

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
    c->managed.version = g_api->version;
    c->managed.manager_context = c;
    c->managed.deleter = [](dlpack::ManagedTensor* self) { std::free(self->manager_context); };
    c->managed.tensor = {c->values, {dlpack::kCpu, 0}, 1, kInt32, &c->shape, &c->stride, 0};
    return Owned(c);
  }

  static py::object to_object(Owned counters) {
    void* object = nullptr;
    if (g_api->to_object(&counters.release()->managed, &object) != 0) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(static_cast<PyObject*>(object));
  }
};

template <typename T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.data);
}

}  // namespace

bool use_exchange_of(const py::object& tensor_type) {
  const py::object capsule = py::getattr(tensor_type, "__dlpack_c_exchange_api__", py::none());
  if (capsule.is_none()) return false;
  auto* api = static_cast<dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  if (api == nullptr) PyErr_Clear();
  while (api != nullptr && api->version.major != dlpack::kMajorVersion) api = api->previous;
  g_api = api != nullptr && api->view_of_object != nullptr ? api : nullptr;
  return g_api != nullptr;
}

py::object accept_remask_dense(const py::object& tokens, const py::object& masked, const py::object& revocable,
                               const py::object& token_ids, const py::object& confidence, const py::object& last,
                               int64_t mask_id, const py::object& threshold, const py::object& threshold_back,
                               int64_t numerator, int64_t denominator, int64_t min_accept, int64_t max_accept,
                               bool verify_last, int threads) {
  Tensor x, m, u, t, c, l, accept, back;
  if (!view(tokens, kInt64, &x) || x.ndim != 2) return py::none();
  const int64_t B = x.shape[0], K = x.shape[1];
  const bool dense = view(masked, kBool, &m) && is_block(m, B, K) && view(revocable, kBool, &u) && is_block(u, B, K) &&
                     view(token_ids, kInt64, &t) && is_block(t, B, K) && view(confidence, kFloat32, &c) &&
                     is_block(c, B, K) && view(last, kInt32, &l) && l.ndim == 1 && l.shape[0] == B &&
                     view(threshold, kFloat32, &accept) && is_per_row(accept, B) &&
                     view(threshold_back, kFloat32, &back) && is_per_row(back, B);
  const bool valid = mask_id >= 0 && 0 <= numerator && numerator <= denominator && min_accept >= 0 && max_accept >= 1;
  if (!dense || !valid || (m.data == u.data && B * K > 0)) return py::none();

  Counters::Owned accepted = Counters::make(B), remasked = Counters::make(B), status = Counters::make(B);
  {
    const py::gil_scoped_release release;
    cpu::kernels().accept_remask({{B, K, data<int64_t>(x), K, data<bool>(m), K, data<int64_t>(t), K, data<float>(c), K,
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

}  // namespace wino
