// Calls of a few microseconds, where reading ten tensors from Python would cost more than the kernel: the tensors come
// as objects, read through the framework's DLPack exchange API.
#pragma once

#include <pybind11/pybind11.h>

namespace wino {

// Takes `tensor_type.__dlpack_c_exchange_api__`; false where the type publishes none that is understood.
bool use_exchange_of(const pybind11::object& tensor_type);

// accept_remask_ on valid arguments that are dense CPU tensors: the three results. None, with nothing done, for all
// others.
pybind11::object accept_remask_dense(const pybind11::object& tokens, const pybind11::object& masked,
                                     const pybind11::object& revocable, const pybind11::object& token_ids,
                                     const pybind11::object& confidence, const pybind11::object& last, int64_t mask_id,
                                     const pybind11::object& threshold, const pybind11::object& threshold_back,
                                     int64_t numerator, int64_t denominator, int64_t min_accept, int64_t max_accept,
                                     bool verify_last, int threads);

}  // namespace wino
