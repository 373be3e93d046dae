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

// shadow_trunk on valid arguments that are CPU tensors, with weights of at most `most_layer_bytes` a layer; writes
// `out` (B, R, D). false, with nothing done, for all others. The caller keeps all tensors alive.
bool shadow_trunk_ordinary(const pybind11::object& x, const pybind11::sequence& weights,
                           const pybind11::sequence& biases, const pybind11::object& cosine,
                           const pybind11::object& sine, const pybind11::object& rows, int64_t num_shadow,
                           const pybind11::object& block_start, float eps, const pybind11::object& visible,
                           const pybind11::object& norm, bool full_precision, const pybind11::object& packed,
                           const pybind11::object& out, int64_t most_layer_bytes, int threads);

// The weights of shadow_trunk as its kernel reads them: how many bytes they take (0: it would not read these, or they
// are more than most_bytes together), and into a tensor of so many. That is used with weights at the same addresses
// and the same instruction set.
int64_t packed_trunk_bytes(const pybind11::sequence& weights, int64_t most_layer_bytes, int64_t most_bytes);
void pack_trunk(const pybind11::sequence& weights, const pybind11::object& packed, int threads);

}  // namespace wino
