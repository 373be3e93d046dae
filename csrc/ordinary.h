// Ordinary calls of operators where looking at the tensors from Python costs much beside the kernel: they come as
// objects (exchange.h) and are checked here. What is not ordinary is left, with nothing done, to the checks and kernels
// that Python knows.
#pragma once

#include <pybind11/pybind11.h>

namespace wino {
namespace ordinary {

using pybind11::object;

// On valid arguments that are dense CPU tensors: the three results; else None.
object accept_remask(const object& tokens, const object& masked, const object& revocable, const object& token_ids,
                     const object& confidence, const object& last, int64_t mask_id, const object& threshold,
                     const object& threshold_back, int64_t numerator, int64_t denominator, int64_t min_accept,
                     int64_t max_accept, bool verify_last, int threads);

// On valid arguments that are CPU tensors, dense but for the weight's rows; writes token_ids and confidence, which are
// like candidate_ids, at least one row. round_to: a Dtype of cpu/kernels.h, or -1: that of hidden.
bool linear_score_tokens(const object& hidden, const object& weight, const object& candidate_ids, const object& bias,
                         const object& temperature, const object& seed, int round_to, const object& token_ids,
                         const object& confidence, int threads);

// On valid arguments that are CPU tensors, with weights of at most `most_layer_bytes` a layer; writes `out` (B, R, D).
// The caller keeps all tensors alive.
bool shadow_trunk(const object& x, const pybind11::sequence& weights, const pybind11::sequence& biases,
                  const object& cosine, const object& sine, const object& rows, int64_t num_shadow,
                  const object& block_start, float eps, const object& visible, const object& norm, bool full_precision,
                  const object& packed, const object& out, int64_t most_layer_bytes, int threads);

// The weights of shadow_trunk as its kernel reads them: how many bytes they take (0: it would not read these, or they
// are more than most_bytes together), and into a tensor of so many. That is used with weights at the same addresses
// and the same instruction set.
int64_t packed_trunk_bytes(const pybind11::sequence& weights, int64_t most_layer_bytes, int64_t most_bytes);
void pack_trunk(const pybind11::sequence& weights, const object& packed, int threads);

}  // namespace ordinary
}  // namespace wino
