#include "exchange.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <new>
#include <stdexcept>
#include <utility>
#include <vector>

#include "cpu/select.h"
#include "dlpack.h"
#include "scratch.h"

namespace py = pybind11;

namespace wino {
namespace {

using dlpack::DataType;
using dlpack::Tensor;

constexpr DataType kInt64{dlpack::kInt, 64, 1}, kInt32{dlpack::kInt, 32, 1}, kFloat32{dlpack::kFloat, 32, 1},
    kBFloat16{dlpack::kBfloat, 16, 1}, kUint8{dlpack::kUint, 8, 1}, kBool{dlpack::kBool, 8, 1};

const dlpack::ExchangeApi* g_api = nullptr;

bool same(DataType a, DataType b) { return a.code == b.code && a.bits == b.bits && a.lanes == b.lanes; }

// Views `object` if it is a CPU tensor.
bool view(const py::handle& object, Tensor* out) {
  if (g_api->view_of_object(object.ptr(), out) != 0) {
    PyErr_Clear();  // the caller's slow path finds out what is wrong with it
    return false;
  }
  out->data = static_cast<char*>(out->data) + out->byte_offset;
  return out->device.type == dlpack::kCpu;
}

// Views `object` if it is a dense CPU tensor of that dtype.
bool view(const py::handle& object, DataType dtype, Tensor* out) {
  if (!view(object, out) || !same(out->dtype, dtype)) return false;
  int64_t dense = 1;
  for (int32_t d = out->ndim - 1; d >= 0; --d) {
    if (out->shape[d] != 1 && out->strides[d] != dense) return false;
    dense *= out->shape[d];
  }
  return true;
}

// Views `object` if it is a CPU tensor of that dtype and shape with unit stride in the last dimension.
bool view_rows(const py::handle& object, DataType dtype, std::initializer_list<int64_t> shape, Tensor* out) {
  if (!view(object, out) || !same(out->dtype, dtype)) return false;
  if (out->ndim != static_cast<int32_t>(shape.size()) || !std::equal(shape.begin(), shape.end(), out->shape)) {
    return false;
  }
  return out->strides[out->ndim - 1] == 1;
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

// The weights and biases of all layers.
class Layers {
 public:
  // false: some are not as shadow_trunk takes them, or they have more than most_bytes together.
  bool read(const py::sequence& weights, const py::sequence& biases, DataType dtype, int64_t D, int64_t head_dim,
            int64_t most_bytes) {
    const size_t number = weights.size() / kWeights;
    if (number == 0 || weights.size() % kWeights != 0) return false;
    if (biases.size() != 0 && biases.size() != number * kBiases) return false;
    Tensor query, key, gate;
    const bool given = view(weights[1], &query) && view(weights[2], &key) && view(weights[7], &gate);
    if (!given || query.ndim != 2 || key.ndim != 2 || gate.ndim != 2) return false;
    const int64_t queries = query.shape[0], keys = key.shape[0], inner = gate.shape[0];
    if (queries < 1 || keys < 1 || queries % head_dim != 0 || keys % head_dim != 0 || queries % keys != 0) return false;
    const int64_t shapes[kBiases][2] = {{queries, D}, {keys, D},  {keys, D}, {D, queries},
                                        {inner, D},   {inner, D}, {D, inner}};
    int64_t numbers = 2 * D;
    for (const auto& shape : shapes) numbers += shape[0] * shape[1];
    if (numbers * static_cast<int64_t>(number) * dtype.bits / 8 > most_bytes) return false;
    dtype_ = same(dtype, kFloat32) ? cpu::kFloat32 : cpu::kBFloat16;
    each.resize(number);
    for (size_t l = 0; l < number; ++l) {
      Tensor norm, inner_norm;
      const auto weight = [&](size_t i) { return weights[l * kWeights + i]; };
      if (!view_rows(weight(0), dtype, {D}, &norm) || !view_rows(weight(5), dtype, {D}, &inner_norm)) return false;
      each[l].norm = norm.data;
      each[l].inner_norm = inner_norm.data;
      for (size_t i = 0; i < kBiases; ++i) {
        const auto [N, K] = shapes[i];
        Tensor linear, bias{};
        if (!view_rows(weight(i < 4 ? i + 1 : i + 2), dtype, {N, K}, &linear)) return false;
        const py::object own = biases.size() == 0 ? py::object(py::none()) : py::object(biases[l * kBiases + i]);
        if (!own.is_none() && !view_rows(own, dtype, {N}, &bias)) return false;
        each[l].linear[i] = {linear.data, bias.data, N, K, linear.strides[0]};
      }
    }
    return true;
  }

  // What of trunk's arguments concerns its layers.
  cpu::TrunkArgs args(int threads) const {
    cpu::TrunkArgs args{};
    args.dtype = dtype_;
    args.D = each[0].linear[0].K;
    args.num_layers = static_cast<int64_t>(each.size());
    args.layers = each.data();
    args.threads = threads;
    return args;
  }

  int64_t packed_bytes() const { return kHeader + cpu::kernels().packed_trunk_bytes(args(1)); }

  void pack(const Tensor& packed, int threads) const {
    *static_cast<Header*>(packed.data) = header();
    cpu::kernels().pack_trunk(args(threads), static_cast<char*>(packed.data) + kHeader);
  }

  // The packed weights behind `packed`, if pack() wrote it of these.
  const void* packed_in(const Tensor& packed) const {
    if (packed.shape[0] < kHeader) return nullptr;
    const Header own = header();
    if (std::memcmp(packed.data, &own, sizeof(own)) != 0 || packed.shape[0] != packed_bytes()) return nullptr;
    return static_cast<const char*>(packed.data) + kHeader;
  }

  std::vector<cpu::LayerArgs> each;

 private:
  static constexpr int64_t kHeader = 64;
  struct Header {
    char isa[24];
    uint64_t weights;  // where and how they lie, and of what dtype
  };

  Header header() const {
    Header header{};
    std::strncpy(header.isa, cpu::isa(), sizeof(header.isa) - 1);
    header.weights = static_cast<uint64_t>(dtype_);
    const auto add = [&](uint64_t x) { header.weights = (header.weights ^ x) * 0x100000001B3ull; };
    for (const cpu::LayerArgs& layer : each) {
      for (const cpu::LinearArgs& linear : layer.linear) {
        add(reinterpret_cast<uintptr_t>(linear.weight));
        for (int64_t size : {linear.N, linear.K, linear.stride}) add(static_cast<uint64_t>(size));
      }
    }
    return header;
  }

  int dtype_ = cpu::kFloat32;
  static constexpr size_t kWeights = 9, kBiases = 7;
};

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

bool shadow_trunk_ordinary(const py::object& x, const py::sequence& weights, const py::sequence& biases,
                           const py::object& cosine, const py::object& sine, const py::object& rows, int64_t num_shadow,
                           const py::object& block_start, float eps, const py::object& visible, const py::object& norm,
                           bool full_precision, const py::object& packed, const py::object& out, int64_t most_bytes,
                           int threads) {
  Tensor in, cos, sin, wanted, start, result, shown{}, last{}, kept{};
  if (!view(x, &in) || in.ndim != 3 || in.strides[2] != 1) return false;
  if (!same(in.dtype, kFloat32) && !same(in.dtype, kBFloat16)) return false;
  const int64_t B = in.shape[0], L = in.shape[1], D = in.shape[2];
  if (!view(cosine, &cos) || cos.ndim != 4) return false;
  const int64_t head_dim = cos.shape[3], tables = cos.shape[0] == 1 ? 1 : B;
  if (head_dim < 2 || head_dim % 2 != 0) return false;
  const bool rotary = view_rows(cosine, kFloat32, {tables, 1, L, head_dim}, &cos) &&
                      view_rows(sine, kFloat32, {tables, 1, L, head_dim}, &sin) &&
                      std::equal(cos.strides, cos.strides + 4, sin.strides);
  if (!rotary || !view(rows, kInt64, &wanted) || wanted.ndim != 2 || wanted.shape[0] != B) return false;
  const int64_t R = wanted.shape[1];
  const bool is_row = std::all_of(data<int64_t>(wanted), data<int64_t>(wanted) + B * R,
                                  [L](int64_t row) { return row >= 0 && row < L; });
  const bool about = view(block_start, kInt64, &start) && start.ndim == 1 && start.shape[0] == B &&
                     (visible.is_none() || (view(visible, kBool, &shown) && is_block(shown, B, L))) &&
                     (norm.is_none() || view_rows(norm, in.dtype, {D}, &last)) && view(out, in.dtype, &result) &&
                     result.ndim == 3 && result.shape[0] == B && result.shape[1] == R && result.shape[2] == D;
  if (!is_row || !about || B * R * D == 0 || num_shadow < 0 || num_shadow > L) return false;
  if (!packed.is_none() && (!view(packed, kUint8, &kept) || kept.ndim != 1)) return false;
  Layers layers;
  if (!layers.read(weights, biases, in.dtype, D, head_dim, most_bytes)) return false;
  const cpu::TrunkArgs args{same(in.dtype, kFloat32) ? cpu::kFloat32 : cpu::kBFloat16,
                            B,
                            L,
                            D,
                            head_dim,
                            static_cast<int64_t>(layers.each.size()),
                            layers.each.data(),
                            in.data,
                            in.strides[0],
                            in.strides[1],
                            data<float>(cos),
                            data<float>(sin),
                            tables == 1 ? 0 : cos.strides[0],
                            cos.strides[2],
                            data<int64_t>(wanted),
                            R,
                            num_shadow,
                            data<int64_t>(start),
                            data<bool>(shown),
                            last.data,
                            eps,
                            full_precision,
                            result.data,
                            packed.is_none() ? nullptr : layers.packed_in(kept),
                            threads};
  const py::gil_scoped_release release;
  const cpu::Kernels& chosen = cpu::kernels();
  chosen.shadow_trunk(args, cpu::Scratch(chosen.shadow_trunk_bytes(args)).begin());
  return true;
}

int64_t packed_trunk_bytes(const py::sequence& weights, int64_t most_bytes) {
  Tensor norm;
  Layers layers;
  if (weights.size() == 0 || !view(weights[0], &norm) || norm.ndim != 1) return 0;
  if (!same(norm.dtype, kFloat32) && !same(norm.dtype, kBFloat16)) return 0;
  if (!layers.read(weights, py::list(), norm.dtype, norm.shape[0], 1, most_bytes)) return 0;
  return layers.packed_bytes();
}

void pack_trunk(const py::sequence& weights, const py::object& packed, int threads) {
  Tensor norm, to;
  Layers layers;
  const bool given = view(weights[0], &norm) && view(packed, kUint8, &to) &&
                     layers.read(weights, py::list(), norm.dtype, norm.shape[0], 1, INT64_MAX);
  if (!given || to.ndim != 1 || to.shape[0] != layers.packed_bytes()) {
    throw std::invalid_argument("pack_trunk: expected weights and a tensor of packed_trunk_bytes(weights) bytes");
  }
  const py::gil_scoped_release release;
  layers.pack(to, threads);
}

}  // namespace wino
