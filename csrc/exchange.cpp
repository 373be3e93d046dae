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
  if (out->device.type != dlpack::kCpu) return false;
  // A subclass may have a shape and no memory of its own.
  const bool is_empty = std::any_of(out->shape, out->shape + out->ndim, [](int64_t size) { return size == 0; });
  if (out->data == nullptr && !is_empty) return false;
  out->data = static_cast<char*>(out->data) + out->byte_offset;
  return true;
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

// The layers of a trunk, and the kernels that are to read them: those in use when this object was made.
class Layers {
 public:
  // false: weights or biases are not as shadow_trunk takes them, or a layer has more than most_bytes of weights.
  bool read(const py::sequence& weights, const py::sequence& biases, DataType dtype, int64_t D, int64_t head_dim,
            int64_t most_bytes) {
    const size_t number = weights.size() / kWeights;
    if (number == 0 || weights.size() % kWeights != 0) return false;
    if (biases.size() != 0 && biases.size() != number * kBiases) return false;
    Tensor query, key, up;
    const bool given = view(weights[1], &query) && view(weights[2], &key) && view(weights[7], &up);
    if (!given || query.ndim != 2 || key.ndim != 2 || up.ndim != 2) return false;
    const int64_t queries = query.shape[0], keys = key.shape[0], inner = up.shape[0];
    if (queries < 1 || keys < 1 || queries % head_dim != 0 || keys % head_dim != 0 || queries % keys != 0) return false;
    const int64_t shapes[kBiases][2] = {{queries, D}, {keys, D},  {keys, D}, {D, queries},
                                        {inner, D},   {inner, D}, {D, inner}};
    int64_t numbers = 2 * D;
    for (const auto& shape : shapes) numbers += shape[0] * shape[1];
    layer_bytes_ = numbers * dtype.bits / 8;
    if (layer_bytes_ > most_bytes) return false;
    dtype_ = same(dtype, kFloat32) ? cpu::kFloat32 : cpu::kBFloat16;
    each_.resize(number);
    for (size_t l = 0; l < number; ++l) {
      Tensor norm, inner_norm;
      const auto weight = [&](size_t i) { return weights[l * kWeights + i]; };
      if (!view_rows(weight(0), dtype, {D}, &norm) || !view_rows(weight(5), dtype, {D}, &inner_norm)) return false;
      each_[l].norm = norm.data;
      each_[l].inner_norm = inner_norm.data;
      for (size_t i = 0; i < kBiases; ++i) {
        const auto [N, K] = shapes[i];
        Tensor linear, bias{};
        if (!view_rows(weight(i < 4 ? i + 1 : i + 2), dtype, {N, K}, &linear)) return false;
        const py::object own = biases.size() == 0 ? py::object(py::none()) : py::object(biases[l * kBiases + i]);
        if (!own.is_none() && !view_rows(own, dtype, {N}, &bias)) return false;
        each_[l].linear[i] = {linear.data, bias.data, N, K, linear.strides[0]};
      }
    }
    return true;
  }

  void put_into(cpu::TrunkArgs* args) const {
    args->dtype = dtype_;
    args->D = each_[0].linear[0].K;
    args->num_layers = static_cast<int64_t>(each_.size());
    args->layers = each_.data();
  }

  int64_t bytes() const { return layer_bytes_ * static_cast<int64_t>(each_.size()); }
  int64_t packed_bytes() const { return kHeaderBytes + kernels_.packed_trunk_bytes(alone(1)); }

  void pack(const Tensor& packed, int threads) const {
    const Header own = header();
    std::memset(packed.data, 0, kHeaderBytes);
    std::memcpy(packed.data, &own, sizeof(own));
    kernels_.pack_trunk(alone(threads), static_cast<char*>(packed.data) + kHeaderBytes);
  }

  // The packed weights behind `packed`, if pack() wrote it of weights at these addresses.
  const void* packed_in(const Tensor& packed) const {
    const Header own = header();
    if (packed.shape[0] != packed_bytes() || std::memcmp(packed.data, &own, sizeof(own)) != 0) return nullptr;
    return static_cast<const char*>(packed.data) + kHeaderBytes;
  }

  void run(const cpu::TrunkArgs& args) const {
    kernels_.shadow_trunk(args, cpu::Scratch(kernels_.shadow_trunk_bytes(args)).begin());
  }

 private:
  static constexpr size_t kWeights = 9, kBiases = 7;
  static constexpr int64_t kHeaderBytes = 64;  // what follows stays aligned
  struct Header {
    char isa[24];
    uint64_t weights;  // where and how they lie, and of what dtype
  };

  cpu::TrunkArgs alone(int threads) const {
    cpu::TrunkArgs args{};
    put_into(&args);
    args.threads = threads;
    return args;
  }

  Header header() const {
    Header header{};
    std::strncpy(header.isa, isa_, sizeof(header.isa) - 1);
    header.weights = static_cast<uint64_t>(dtype_);
    const auto add = [&](uint64_t x) { header.weights = (header.weights ^ x) * 0x100000001B3ull; };
    for (const cpu::LayerArgs& layer : each_) {
      for (const cpu::LinearArgs& linear : layer.linear) {
        add(reinterpret_cast<uintptr_t>(linear.weight));
        for (int64_t size : {linear.N, linear.K, linear.stride}) add(static_cast<uint64_t>(size));
      }
    }
    return header;
  }

  const cpu::Kernels& kernels_ = cpu::kernels();
  const char* isa_ = cpu::isa();
  std::vector<cpu::LayerArgs> each_;
  int64_t layer_bytes_ = 0;
  int dtype_ = cpu::kFloat32;
};

// Views x (B, L, D), the rotary tables and out (B, R, D) into `args`, and the rows that leave.
bool read_rows(const py::object& x, const py::object& cosine, const py::object& sine, const py::object& rows,
               const py::object& out, cpu::TrunkArgs* args, DataType* dtype) {
  Tensor in, cos, sin, leaving, result;
  if (!view(x, &in) || in.ndim != 3 || in.strides[2] != 1) return false;
  if (!same(in.dtype, kFloat32) && !same(in.dtype, kBFloat16)) return false;
  const int64_t B = in.shape[0], L = in.shape[1], D = in.shape[2];
  if (!view(cosine, &cos) || cos.ndim != 4) return false;
  const int64_t head_dim = cos.shape[3], tables = cos.shape[0] == 1 ? 1 : B;
  const bool rotary = head_dim >= 2 && head_dim % 2 == 0 &&
                      view_rows(cosine, kFloat32, {tables, 1, L, head_dim}, &cos) &&
                      view_rows(sine, kFloat32, {tables, 1, L, head_dim}, &sin) &&
                      std::equal(cos.strides, cos.strides + 4, sin.strides);
  if (!rotary || !view(rows, kInt64, &leaving) || leaving.ndim != 2 || leaving.shape[0] != B) return false;
  const int64_t R = leaving.shape[1], *row = data<int64_t>(leaving);
  if (!view_rows(out, in.dtype, {B, R, D}, &result) || B * R * D == 0) return false;
  if (!std::all_of(row, row + B * R, [L](int64_t r) { return r >= 0 && r < L; })) return false;
  args->B = B;
  args->L = L;
  args->D = D;
  args->head_dim = head_dim;
  args->x = in.data;
  args->x_batch_stride = in.strides[0];
  args->x_row_stride = in.strides[1];
  args->cosine = data<float>(cos);
  args->sine = data<float>(sin);
  args->table_batch_stride = tables == 1 ? 0 : cos.strides[0];
  args->table_row_stride = cos.strides[2];
  args->rows = row;
  args->R = R;
  args->out = result.data;
  *dtype = in.dtype;
  return true;
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

bool shadow_trunk_ordinary(const py::object& x, const py::sequence& weights, const py::sequence& biases,
                           const py::object& cosine, const py::object& sine, const py::object& rows, int64_t num_shadow,
                           const py::object& block_start, float eps, const py::object& visible, const py::object& norm,
                           bool full_precision, const py::object& packed, const py::object& out,
                           int64_t most_layer_bytes, int threads) {
  cpu::TrunkArgs args{};
  DataType dtype;
  if (!read_rows(x, cosine, sine, rows, out, &args, &dtype)) return false;
  const int64_t B = args.B, L = args.L;
  Tensor start, shown{}, last{}, kept{};
  const bool about = num_shadow >= 0 && num_shadow <= L && view(block_start, kInt64, &start) && start.ndim == 1 &&
                     start.shape[0] == B &&
                     (visible.is_none() || (view(visible, kBool, &shown) && is_block(shown, B, L))) &&
                     (norm.is_none() || view_rows(norm, dtype, {args.D}, &last)) &&
                     (packed.is_none() || (view(packed, kUint8, &kept) && kept.ndim == 1));
  Layers layers;
  if (!about || !layers.read(weights, biases, dtype, args.D, args.head_dim, most_layer_bytes)) return false;
  layers.put_into(&args);
  args.num_shadow = num_shadow;
  args.block_start = data<int64_t>(start);
  args.visible = data<bool>(shown);
  args.norm = last.data;
  args.eps = eps;
  args.full_precision = full_precision;
  args.packed = packed.is_none() ? nullptr : layers.packed_in(kept);
  args.threads = threads;
  const py::gil_scoped_release release;
  layers.run(args);
  return true;
}

int64_t packed_trunk_bytes(const py::sequence& weights, int64_t most_layer_bytes, int64_t most_bytes) {
  Tensor norm;
  Layers layers;
  if (weights.size() == 0 || !view(weights[0], &norm) || norm.ndim != 1) return 0;
  if (!same(norm.dtype, kFloat32) && !same(norm.dtype, kBFloat16)) return 0;
  if (!layers.read(weights, py::list(), norm.dtype, norm.shape[0], 1, most_layer_bytes)) return 0;
  return layers.bytes() > most_bytes ? 0 : layers.packed_bytes();
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
