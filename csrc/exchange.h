// Tensors that come as objects, read through the framework's DLPack exchange API: looking at one from Python costs as
// much as a small kernel.
#pragma once

#include <pybind11/pybind11.h>

#include <initializer_list>

#include "dlpack.h"

namespace wino {
namespace exchange {

using dlpack::DataType;
using dlpack::Tensor;

constexpr DataType kInt64{dlpack::kInt, 64, 1}, kInt32{dlpack::kInt, 32, 1}, kFloat32{dlpack::kFloat, 32, 1},
    kFloat64{dlpack::kFloat, 64, 1}, kBFloat16{dlpack::kBfloat, 16, 1}, kFloat16{dlpack::kFloat, 16, 1},
    kUint8{dlpack::kUint, 8, 1}, kBool{dlpack::kBool, 8, 1};

bool same(DataType a, DataType b);

bool has_shape(const Tensor& t, const int64_t* begin, const int64_t* end);
bool has_shape(const Tensor& t, std::initializer_list<int64_t> shape);

// Takes `tensor_type.__dlpack_c_exchange_api__`, which all below needs; false where the type publishes none that is
// understood.
bool use_exchange_of(const pybind11::object& tensor_type);

// What use_exchange_of() took.
const dlpack::ExchangeApi& api();

bool is_dense(const Tensor& t);

// Of that dtype and shape, with unit stride in the last dimension.
bool is_rows(const Tensor& t, DataType dtype, std::initializer_list<int64_t> shape);

// Views `object` if it is a CPU tensor.
bool view(const pybind11::handle& object, Tensor* out);

// Views `object` if it is a dense CPU tensor of that dtype.
bool view(const pybind11::handle& object, DataType dtype, Tensor* out);

// Views `object` if it is a CPU tensor that is_rows().
bool view_rows(const pybind11::handle& object, DataType dtype, std::initializer_list<int64_t> shape, Tensor* out);

template <typename T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.data);
}

}  // namespace exchange
}  // namespace wino
