#include "exchange.h"

#include <algorithm>

namespace py = pybind11;

namespace wino {
namespace exchange {
namespace {

const dlpack::ExchangeApi* g_api = nullptr;

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

const dlpack::ExchangeApi& api() { return *g_api; }

bool same(DataType a, DataType b) { return a.code == b.code && a.bits == b.bits && a.lanes == b.lanes; }

bool has_shape(const Tensor& t, const int64_t* begin, const int64_t* end) {
  return t.ndim == end - begin && std::equal(begin, end, t.shape);
}
bool has_shape(const Tensor& t, std::initializer_list<int64_t> shape) {
  return has_shape(t, shape.begin(), shape.end());
}

bool is_dense(const Tensor& t) {
  int64_t dense = 1;
  for (int32_t d = t.ndim - 1; d >= 0; --d) {
    if (t.shape[d] != 1 && t.strides[d] != dense) return false;
    dense *= t.shape[d];
  }
  return true;
}

bool is_rows(const Tensor& t, DataType dtype, std::initializer_list<int64_t> shape) {
  return same(t.dtype, dtype) && has_shape(t, shape) && t.strides[t.ndim - 1] == 1;
}

bool view(const py::handle& object, Tensor* out) {
  if (api().view_of_object(object.ptr(), out) != 0) {
    PyErr_Clear();  // the caller's slow path finds out what is wrong with it
    return false;
  }
  if (out->device.type != dlpack::kCpu) return false;
  // A subclass may have a shape and no memory of its own.
  const bool is_empty = std::any_of(out->shape, out->shape + out->ndim, [](int64_t size) { return size == 0; });
  if (out->data == nullptr && !is_empty) return false;
  out->data = static_cast<char*>(out->data) + out->byte_offset;
  return true;
}

bool view(const py::handle& object, DataType dtype, Tensor* out) {
  return view(object, out) && same(out->dtype, dtype) && is_dense(*out);
}

bool view_rows(const py::handle& object, DataType dtype, std::initializer_list<int64_t> shape, Tensor* out) {
  return view(object, out) && is_rows(*out, dtype, shape);
}

}  // namespace exchange
}  // namespace wino
