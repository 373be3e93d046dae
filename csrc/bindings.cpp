// Exports of the native kernels: addresses, sizes and strides in, nothing checked. The callers in wino_kernels/cpu
// check.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/select.h"
#include "cpu/threads.h"
#include "exchange.h"
#include "ordinary.h"
#include "scratch.h"

namespace py = pybind11;

namespace wino {
namespace cpu {
namespace {

using Address = uintptr_t;

template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

ScoreArgs score_args(Address logits, int dtype, int64_t outer, int64_t inner, int64_t V, int64_t outer_stride,
                     int64_t inner_stride, Address temperature, int64_t temperature_stride, Address seed, int threads) {
  ScoreArgs args{};
  args.logits = at<const void>(logits);
  args.dtype = dtype;
  args.outer = outer;
  args.inner = inner;
  args.V = V;
  args.outer_stride = outer_stride;
  args.inner_stride = inner_stride;
  args.temperature = {at<const float>(temperature), temperature_stride};
  args.seed = at<const int64_t>(seed);
  args.threads = threads;
  return args;
}

BlockArgs block_args(int64_t B, int64_t K, Address tokens, int64_t tokens_stride, Address masked, int64_t masked_stride,
                     Address accepted, Address remasked, Address status, int threads) {
  BlockArgs args{};
  args.B = B;
  args.K = K;
  args.tokens = at<int64_t>(tokens);
  args.tokens_stride = tokens_stride;
  args.masked = at<bool>(masked);
  args.masked_stride = masked_stride;
  args.accepted = at<int32_t>(accepted);
  args.remasked = at<int32_t>(remasked);
  args.status = at<int32_t>(status);
  args.threads = threads;
  return args;
}

AcceptRemaskArgs accept_remask_args(const BlockArgs& block, Address revocable, int64_t revocable_stride, Address last,
                                    int64_t last_stride, int64_t mask_id, Address threshold, int64_t threshold_stride,
                                    Address threshold_back, int64_t threshold_back_stride, int64_t numerator,
                                    int64_t denominator, int64_t min_accept, int64_t max_accept, bool verify_last) {
  return {block,
          at<bool>(revocable),
          revocable_stride,
          at<int32_t>(last),
          last_stride,
          mask_id,
          at<const float>(threshold),
          threshold_stride,
          at<const float>(threshold_back),
          threshold_back_stride,
          {numerator, denominator, min_accept, max_accept},
          verify_last};
}

void score_tokens(Address logits, int dtype, int64_t outer, int64_t inner, int64_t V, int64_t outer_stride,
                  int64_t inner_stride, Address candidate_ids, Address temperature, int64_t temperature_stride,
                  Address seed, Address token_ids, Address confidence, int threads) {
  ScoreArgs args = score_args(logits, dtype, outer, inner, V, outer_stride, inner_stride, temperature,
                              temperature_stride, seed, threads);
  args.candidate_ids = at<const int64_t>(candidate_ids);
  args.token_ids = at<int64_t>(token_ids);
  args.confidence = at<double>(confidence);
  kernels().score_tokens(args);
}

void accept_remask(int64_t B, int64_t K, Address tokens, int64_t tokens_stride, Address masked, int64_t masked_stride,
                   Address revocable, int64_t revocable_stride, Address token_ids, int64_t token_ids_stride,
                   Address confidence, int64_t confidence_stride, Address last, int64_t last_stride, int64_t mask_id,
                   Address threshold, int64_t threshold_stride, Address threshold_back, int64_t threshold_back_stride,
                   int64_t numerator, int64_t denominator, int64_t min_accept, int64_t max_accept, bool verify_last,
                   Address accepted, Address remasked, Address status, int threads) {
  BlockArgs block = block_args(B, K, tokens, tokens_stride, masked, masked_stride, accepted, remasked, status, threads);
  block.token_ids = at<const int64_t>(token_ids);
  block.token_ids_stride = token_ids_stride;
  block.confidence = at<const double>(confidence);
  block.confidence_stride = confidence_stride;
  kernels().accept_remask(accept_remask_args(block, revocable, revocable_stride, last, last_stride, mask_id, threshold,
                                             threshold_stride, threshold_back, threshold_back_stride, numerator,
                                             denominator, min_accept, max_accept, verify_last));
}

void accept(int64_t B, int64_t K, Address tokens, int64_t tokens_stride, Address masked, int64_t masked_stride,
            Address token_ids, int64_t token_ids_stride, Address confidence, int64_t confidence_stride,
            Address threshold, int64_t threshold_stride, Address count, int64_t count_stride, bool count_is_int64,
            Address accepted, Address status, int threads) {
  BlockArgs block = block_args(B, K, tokens, tokens_stride, masked, masked_stride, accepted, 0, status, threads);
  block.token_ids = at<const int64_t>(token_ids);
  block.token_ids_stride = token_ids_stride;
  block.confidence = at<const double>(confidence);
  block.confidence_stride = confidence_stride;
  kernels().accept(
      {block, at<const float>(threshold), threshold_stride, at<const void>(count), count_stride, count_is_int64});
}

void wino_step(Address logits, int dtype, int64_t B, int64_t K, int64_t V, int64_t outer_stride, int64_t inner_stride,
               Address temperature, int64_t temperature_stride, Address seed, Address tokens, int64_t tokens_stride,
               Address masked, int64_t masked_stride, Address revocable, int64_t revocable_stride, Address last,
               int64_t last_stride, int64_t mask_id, Address threshold, int64_t threshold_stride,
               Address threshold_back, int64_t threshold_back_stride, int64_t numerator, int64_t denominator,
               int64_t min_accept, int64_t max_accept, bool verify_last, Address accepted, Address remasked,
               Address status, int threads) {
  const ScoreArgs score =
      score_args(logits, dtype, B, K, V, outer_stride, inner_stride, temperature, temperature_stride, seed, threads);
  const BlockArgs block =
      block_args(B, K, tokens, tokens_stride, masked, masked_stride, accepted, remasked, status, threads);
  const std::unique_ptr<int64_t[]> scratch(new int64_t[3 * B * K]);
  kernels().wino_step(accept_remask_args(block, revocable, revocable_stride, last, last_stride, mask_id, threshold,
                                         threshold_stride, threshold_back, threshold_back_stride, numerator,
                                         denominator, min_accept, max_accept, verify_last),
                      score, scratch.get());
}

LossArgs loss_args(Address logits, int dtype, int64_t rows, int64_t width, int64_t row_stride, int64_t first_id,
                   Address labels, int threads) {
  LossArgs args{};
  args.logits = at<const void>(logits);
  args.dtype = dtype;
  args.rows = rows;
  args.width = width;
  args.row_stride = row_stride;
  args.first_id = first_id;
  args.labels = at<const int64_t>(labels);
  args.threads = threads;
  return args;
}

void trajectory_loss_begin(int64_t rows, Address state) {
  LossArgs args{};
  args.rows = rows;
  args.state = at<LossRow>(state);
  kernels().trajectory_loss_begin(args);
}

void trajectory_loss_tile(Address logits, int dtype, int64_t rows, int64_t width, int64_t row_stride, int64_t first_id,
                          Address labels, Address state, int threads) {
  LossArgs args = loss_args(logits, dtype, rows, width, row_stride, first_id, labels, threads);
  args.state = at<LossRow>(state);
  kernels().trajectory_loss_tile(args);
}

void trajectory_loss_end(int64_t rows, Address state, Address log_sum_exp, Address entropy, Address cross_entropy,
                         Address top_p, Address top) {
  LossArgs args{};
  args.rows = rows;
  args.state = at<LossRow>(state);
  kernels().trajectory_loss_end(args, at<double>(log_sum_exp), at<double>(entropy), at<double>(cross_entropy),
                                at<float>(top_p), at<int64_t>(top));
}

void trajectory_loss_gradient(Address logits, int dtype, int64_t rows, int64_t width, int64_t row_stride,
                              int64_t first_id, Address labels, Address gradient, int threads) {
  LossArgs args = loss_args(logits, dtype, rows, width, row_stride, first_id, labels, threads);
  args.gradient = at<const LossGradient>(gradient);
  kernels().trajectory_loss_gradient(args);
}

// weight, bias or 0, N, K, stride of the weight's rows
using Linear = std::tuple<Address, Address, int64_t, int64_t, int64_t>;

LinearArgs linear_args(const Linear& linear) {
  const auto& [weight, bias, N, K, stride] = linear;
  return {at<const void>(weight), at<const void>(bias), N, K, stride};
}

void linear_score_tokens(int dtype, int round_to, int64_t rows, int64_t row_stride, Address hidden, const Linear& head,
                         Address candidate_ids, Address temperature, int64_t temperature_stride, Address seed,
                         Address token_ids, Address confidence, int threads) {
  const HeadArgs args{dtype,
                      round_to,
                      rows,
                      row_stride,
                      at<const void>(hidden),
                      linear_args(head),
                      at<const int64_t>(candidate_ids),
                      {at<const float>(temperature), temperature_stride},
                      at<const int64_t>(seed),
                      at<int64_t>(token_ids),
                      at<double>(confidence),
                      threads};
  const Kernels& chosen = kernels();
  chosen.linear_score_tokens(args, Scratch(chosen.linear_score_tokens_bytes(args)).begin());
}

using Strides = std::tuple<int64_t, int64_t, int64_t>;

void shadow_attention(int dtype, int64_t B, int64_t heads, int64_t key_heads, int64_t Lq, int64_t Lk, int64_t head_dim,
                      int64_t num_shadow, Address query, const Strides& query_strides, Address key,
                      const Strides& key_strides, Address value, const Strides& value_strides, Address block_start,
                      Address visible, float scale, Address out, int threads) {
  AttentionArgs args{};
  args.dtype = dtype;
  args.B = B;
  args.heads = heads;
  args.key_heads = key_heads;
  args.Lq = Lq;
  args.Lk = Lk;
  args.head_dim = head_dim;
  args.num_shadow = num_shadow;
  args.query = at<const void>(query);
  args.key = at<const void>(key);
  args.value = at<const void>(value);
  std::tie(args.query_strides[0], args.query_strides[1], args.query_strides[2]) = query_strides;
  std::tie(args.key_strides[0], args.key_strides[1], args.key_strides[2]) = key_strides;
  std::tie(args.value_strides[0], args.value_strides[1], args.value_strides[2]) = value_strides;
  args.block_start = at<const int64_t>(block_start);
  args.visible = at<const bool>(visible);
  args.scale = scale;
  args.out = at<void>(out);
  args.out_strides[0] = heads * Lq * head_dim;
  args.out_strides[1] = Lq * head_dim;
  args.out_strides[2] = head_dim;
  args.threads = threads;
  const Kernels& chosen = kernels();
  chosen.shadow_attention(args, Scratch(chosen.shadow_attention_bytes(args)).begin());
}

void norm_qkv_rope(int dtype, int64_t B, int64_t L, int64_t D, int64_t head_dim, Address x, int64_t x_batch_stride,
                   int64_t x_row_stride, Address query_rows, int64_t Q, bool all_ask, Address norm_weight, float eps,
                   const Linear& query, const Linear& key, const Linear& value, Address cosine, Address sine,
                   int64_t table_batch_stride, int64_t table_row_stride, bool full_precision, Address query_out,
                   Address key_out, Address value_out, int threads) {
  const QkvArgs args{dtype,
                     B,
                     L,
                     D,
                     head_dim,
                     at<const void>(x),
                     x_batch_stride,
                     x_row_stride,
                     at<const int64_t>(query_rows),
                     Q,
                     all_ask,
                     at<const void>(norm_weight),
                     eps,
                     {linear_args(query), linear_args(key), linear_args(value)},
                     at<const float>(cosine),
                     at<const float>(sine),
                     table_batch_stride,
                     table_row_stride,
                     full_precision,
                     {at<void>(query_out), at<void>(key_out), at<void>(value_out)},
                     threads};
  const Kernels& chosen = kernels();
  chosen.norm_qkv_rope(args, Scratch(chosen.norm_qkv_rope_bytes(args)).begin());
}

void out_norm_swiglu(int dtype, int64_t B, int64_t L, int64_t D, int64_t head_dim, Address x, int64_t x_batch_stride,
                     int64_t x_row_stride, Address attended, int64_t attended_batch_stride,
                     int64_t attended_head_stride, int64_t attended_row_stride, Address norm_weight, float eps,
                     const Linear& projection, const Linear& gate, const Linear& up, const Linear& down, Address out,
                     int threads) {
  const MlpArgs args{dtype,
                     B,
                     L,
                     D,
                     head_dim,
                     at<const void>(x),
                     x_batch_stride,
                     x_row_stride,
                     nullptr,
                     nullptr,
                     at<const void>(attended),
                     attended_batch_stride,
                     attended_head_stride,
                     attended_row_stride,
                     at<const void>(norm_weight),
                     eps,
                     {linear_args(projection), linear_args(gate), linear_args(up), linear_args(down)},
                     at<void>(out),
                     threads};
  const Kernels& chosen = kernels();
  chosen.out_norm_swiglu(args, Scratch(chosen.out_norm_swiglu_bytes(args)).begin());
}

// norms, then the linear layers in the order of LayerArgs
using Layer = std::tuple<Address, Address, std::array<Linear, 7>>;

void shadow_trunk(int dtype, int64_t B, int64_t L, int64_t D, int64_t head_dim, const std::vector<Layer>& layers,
                  Address x, int64_t x_batch_stride, int64_t x_row_stride, Address cosine, Address sine,
                  int64_t table_batch_stride, int64_t table_row_stride, Address rows, int64_t R, int64_t num_shadow,
                  Address block_start, Address visible, Address norm, float eps, bool full_precision, Address out,
                  int threads) {
  for (int64_t i = 0; i < B * R; ++i) {
    const int64_t row = at<const int64_t>(rows)[i];
    if (row >= 0 && row < L) continue;
    const std::string range = "[0, " + std::to_string(L) + ")";
    throw std::invalid_argument("shadow_trunk: rows must be in " + range + ", got " + std::to_string(row));
  }
  std::vector<LayerArgs> each;
  each.reserve(layers.size());
  for (const auto& [norm_weight, inner_norm_weight, linears] : layers) {
    LayerArgs layer{at<const void>(norm_weight), at<const void>(inner_norm_weight), {}};
    for (size_t i = 0; i < linears.size(); ++i) layer.linear[i] = linear_args(linears[i]);
    each.push_back(layer);
  }
  const TrunkArgs args{dtype,
                       B,
                       L,
                       D,
                       head_dim,
                       static_cast<int64_t>(each.size()),
                       each.data(),
                       at<const void>(x),
                       x_batch_stride,
                       x_row_stride,
                       at<const float>(cosine),
                       at<const float>(sine),
                       table_batch_stride,
                       table_row_stride,
                       at<const int64_t>(rows),
                       R,
                       num_shadow,
                       at<const int64_t>(block_start),
                       at<const bool>(visible),
                       at<const void>(norm),
                       eps,
                       full_precision,
                       at<void>(out),
                       nullptr,
                       threads};
  const Kernels& chosen = kernels();
  chosen.shadow_trunk(args, Scratch(chosen.shadow_trunk_bytes(args)).begin());
}

void exponentials(int64_t n, int threads) { kernels().exponentials(n, threads); }

void read_once(Address data, int64_t n, int threads) { kernels().read_once(at<const float>(data), n, threads); }

void set_isa(const std::string& name) {
  if (const std::string reason = select_isa(name.c_str()); !reason.empty()) {
    throw std::invalid_argument(name + ": " + reason);
  }
}

}  // namespace
}  // namespace cpu
}  // namespace wino

PYBIND11_MODULE(_C, m) {
  using namespace wino::cpu;
  using release_gil = py::call_guard<py::gil_scoped_release>;
  m.def("score_tokens", &wino::cpu::score_tokens, release_gil());
  m.def("linear_score_tokens", &wino::cpu::linear_score_tokens, release_gil());
  m.def("trajectory_loss_begin", &wino::cpu::trajectory_loss_begin, release_gil());
  m.def("trajectory_loss_tile", &wino::cpu::trajectory_loss_tile, release_gil());
  m.def("trajectory_loss_end", &wino::cpu::trajectory_loss_end, release_gil());
  m.def("trajectory_loss_gradient", &wino::cpu::trajectory_loss_gradient, release_gil());
  m.def("accept_remask", &wino::cpu::accept_remask, release_gil());
  m.def("use_exchange_of", &wino::exchange::use_exchange_of);
  m.def("accept_remask_ordinary", &wino::ordinary::accept_remask);
  m.def("linear_score_tokens_ordinary", &wino::ordinary::linear_score_tokens);
  m.def("shadow_trunk_ordinary", &wino::ordinary::shadow_trunk);
  m.def("packed_trunk_bytes", &wino::ordinary::packed_trunk_bytes);
  m.def("pack_trunk", &wino::ordinary::pack_trunk);
  m.def("accept", &wino::cpu::accept, release_gil());
  m.def("wino_step", &wino::cpu::wino_step, release_gil());
  m.def("shadow_attention", &wino::cpu::shadow_attention, release_gil());
  m.def("norm_qkv_rope", &wino::cpu::norm_qkv_rope, release_gil());
  m.def("out_norm_swiglu", &wino::cpu::out_norm_swiglu, release_gil());
  m.def("shadow_trunk", &wino::cpu::shadow_trunk, release_gil());
  m.def("exponentials", &wino::cpu::exponentials, release_gil());
  m.def("read_once", &wino::cpu::read_once, release_gil());
  m.def("isa", &isa);
  m.def("why_not_isa", &why_not_isa);
  m.def("set_isa", &set_isa);
  m.def("use_openmp_of", &use_openmp_of);
  m.def("threading_layer", &threading_layer);
  m.attr("loss_row_bytes") = sizeof(LossRow);
  m.attr("version") = WINO_VERSION;
}
