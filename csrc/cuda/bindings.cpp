// Exports of the GPU kernels: addresses, sizes and strides in, nothing checked. The callers in wino_kernels/cuda check.
// The runtime is linked in and looks for the driver when it is first needed, so the module loads on any machine.
#include <pybind11/pybind11.h>

#include <sstream>
#include <stdexcept>
#include <string>

#include "cuda/operators.h"

namespace py = pybind11;

namespace wino {
namespace {

using cuda::BlockArgs;
using cuda::Logits;
using Address = uintptr_t;

template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

void check(const char* op, cudaError_t status) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string(op) + ": the launch failed: " + cudaGetErrorName(status) + " (" +
                           cudaGetErrorString(status) + ")");
}

Logits logits_of(Address data, int64_t outer, int64_t inner, int64_t V, int64_t outer_stride, int64_t inner_stride,
                 Address temperatures, float temperature, Address seed) {
  return {
      at<const void>(data),   outer, inner, V, outer_stride, inner_stride, {at<const float>(temperatures), temperature},
      at<const int64_t>(seed)};
}

BlockArgs block_of(int64_t B, int64_t K, Address tokens, int64_t tokens_stride, Address masked, int64_t masked_stride,
                   Address token_ids, Address confidence, Address accepted, Address remasked, Address status) {
  return {B,
          K,
          at<int64_t>(tokens),
          tokens_stride,
          at<uint8_t>(masked),
          masked_stride,
          at<const int64_t>(token_ids),
          at<const double>(confidence),
          at<int32_t>(accepted),
          at<int32_t>(remasked),
          at<int32_t>(status)};
}

void score_tokens(Address logits, int dtype, int64_t outer, int64_t inner, int64_t V, int64_t outer_stride,
                  int64_t inner_stride, Address candidate_ids, Address temperatures, float temperature, Address seed,
                  Address token_ids, Address confidence, Address scratch, Address counters, Address stream) {
  cuda::ScoreArgs args{};
  args.logits = logits_of(logits, outer, inner, V, outer_stride, inner_stride, temperatures, temperature, seed);
  args.candidate_ids = at<const int64_t>(candidate_ids);
  args.token_ids = at<int64_t>(token_ids);
  args.confidence = at<double>(confidence);
  check("score_tokens",
        cuda::score_tokens(args, dtype, {at<float>(scratch), at<uint32_t>(counters)}, at<CUstream_st>(stream)));
}

void accept_remask(int64_t B, int64_t K, Address tokens, int64_t tokens_stride, Address masked, int64_t masked_stride,
                   Address revocable, int64_t revocable_stride, Address token_ids, Address confidence, Address last,
                   int64_t mask_id, Address thresholds, float threshold, Address thresholds_back, float threshold_back,
                   int64_t numerator, int64_t denominator, int64_t min_accept, int64_t max_accept, bool verify_last,
                   Address accepted, Address remasked, Address status, Address stream) {
  check("accept_remask_", cuda::accept_remask({block_of(B, K, tokens, tokens_stride, masked, masked_stride, token_ids,
                                                        confidence, accepted, remasked, status),
                                               at<uint8_t>(revocable),
                                               revocable_stride,
                                               at<int32_t>(last),
                                               mask_id,
                                               {at<const float>(thresholds), threshold},
                                               {at<const float>(thresholds_back), threshold_back},
                                               {numerator, denominator, min_accept, max_accept},
                                               verify_last},
                                              at<CUstream_st>(stream)));
}

void accept(int64_t B, int64_t K, Address tokens, int64_t tokens_stride, Address masked, int64_t masked_stride,
            Address token_ids, Address confidence, bool by_threshold, Address thresholds, float threshold,
            Address counts, int64_t count, bool counts_are_int64, Address accepted, Address status, Address stream) {
  check("accept_", cuda::accept({block_of(B, K, tokens, tokens_stride, masked, masked_stride, token_ids, confidence,
                                          accepted, 0, status),
                                 by_threshold,
                                 {at<const float>(thresholds), threshold},
                                 {counts_are_int64 ? at<const int64_t>(counts) : nullptr, count},
                                 counts_are_int64 ? nullptr : at<const int32_t>(counts)},
                                at<CUstream_st>(stream)));
}

void wino_step(Address logits, int dtype, int64_t B, int64_t K, int64_t V, int64_t outer_stride, int64_t inner_stride,
               Address temperatures, float temperature, Address seed, Address tokens, int64_t tokens_stride,
               Address masked, int64_t masked_stride, Address revocable, int64_t revocable_stride, Address last,
               int64_t mask_id, Address thresholds, float threshold, Address thresholds_back, float threshold_back,
               int64_t numerator, int64_t denominator, int64_t min_accept, int64_t max_accept, bool verify_last,
               Address accepted, Address remasked, Address status, Address scratch, Address counters, Address stream) {
  check("wino_step_",
        cuda::wino_step(logits_of(logits, B, K, V, outer_stride, inner_stride, temperatures, temperature, seed), dtype,
                        {block_of(B, K, tokens, tokens_stride, masked, masked_stride, 0, 0, accepted, remasked, status),
                         at<uint8_t>(revocable),
                         revocable_stride,
                         at<int32_t>(last),
                         mask_id,
                         {at<const float>(thresholds), threshold},
                         {at<const float>(thresholds_back), threshold_back},
                         {numerator, denominator, min_accept, max_accept},
                         verify_last},
                        {at<float>(scratch), at<uint32_t>(counters)}, at<CUstream_st>(stream)));
}

int runtime_version() {
  int version = 0;
  return cudaRuntimeGetVersion(&version) == cudaSuccess ? version : 0;
}

int driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

// Whether this build runs on a device of that capability (86 for 8.6): machine code does within its generation, on this
// chip and later ones, PTX ("compute_") on every later one.
bool runs_on(int capability) {
  std::istringstream architectures(WINO_CUDA_ARCHITECTURES);
  for (std::string name; architectures >> name;) {
    const bool is_ptx = name.rfind("compute_", 0) == 0;
    const int built_for = std::stoi(name.substr(name.find('_') + 1));
    if (built_for <= capability && (is_ptx || built_for / 10 == capability / 10)) return true;
  }
  return false;
}

// Why no kernel can run here; the empty string when one can, on some device.
std::string why_not() {
  if (driver_version() == 0) return "no CUDA driver on this machine";
  int devices = 0;
  bool runs = false;
  std::string found;
  cudaError_t status = cudaGetDeviceCount(&devices);
  for (int device = 0; status == cudaSuccess && device < devices; ++device) {
    int major = 0, minor = 0;
    status = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    if (status == cudaSuccess) {
      status = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    }
    runs |= runs_on(10 * major + minor);
    found += (found.empty() ? "" : ", ") + std::to_string(major) + "." + std::to_string(minor);
  }
  cudaGetLastError();
  if (status != cudaSuccess) return std::string(cudaGetErrorName(status)) + ": " + cudaGetErrorString(status);
  if (devices == 0) return "no CUDA device on this machine";
  if (!runs) return "no code for GPUs of compute capability " + found + ", only for " WINO_CUDA_ARCHITECTURES;
  return "";
}

}  // namespace
}  // namespace wino

PYBIND11_MODULE(_C_cuda, m) {
  using release_gil = py::call_guard<py::gil_scoped_release>;
  m.def("score_tokens", &wino::score_tokens, release_gil());
  m.def("accept_remask", &wino::accept_remask, release_gil());
  m.def("accept", &wino::accept, release_gil());
  m.def("wino_step", &wino::wino_step, release_gil());
  m.def("scratch_elements", &wino::cuda::scratch_elements);
  m.def("counter_elements", &wino::cuda::counter_elements);
  m.def("runtime_version", &wino::runtime_version);
  m.def("driver_version", &wino::driver_version);
  m.def("why_not", &wino::why_not);
  m.attr("device_types") = py::make_tuple(WINO_DEVICE_TYPE);
  m.attr("architectures") = WINO_CUDA_ARCHITECTURES;
  m.attr("version") = WINO_VERSION;
}
