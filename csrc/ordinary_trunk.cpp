#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "cpu/select.h"
#include "exchange.h"
#include "ordinary.h"
#include "scratch.h"

namespace py = pybind11;

namespace wino {
namespace ordinary {
namespace {

using namespace exchange;

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
        const object own = biases.size() == 0 ? object(py::none()) : object(biases[l * kBiases + i]);
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
bool read_rows(const object& x, const object& cosine, const object& sine, const object& rows, const object& out,
               cpu::TrunkArgs* args, DataType* dtype) {
  Tensor in, cos, sin, leaving, result;
  if (!view(x, &in) || in.ndim != 3 || in.strides[2] != 1) return false;
  if (!same(in.dtype, kFloat32) && !same(in.dtype, kBFloat16)) return false;
  const int64_t B = in.shape[0], L = in.shape[1], D = in.shape[2];
  if (!view(cosine, &cos) || cos.ndim != 4) return false;
  const int64_t head_dim = cos.shape[3], tables = cos.shape[0] == 1 ? 1 : B;
  const bool rotary = head_dim >= 2 && head_dim % 2 == 0 && is_rows(cos, kFloat32, {tables, 1, L, head_dim}) &&
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

bool shadow_trunk(const object& x, const py::sequence& weights, const py::sequence& biases, const object& cosine,
                  const object& sine, const object& rows, int64_t num_shadow, const object& block_start, float eps,
                  const object& visible, const object& norm, bool full_precision, const object& packed,
                  const object& out, int64_t most_layer_bytes, int threads) {
  cpu::TrunkArgs args{};
  DataType dtype;
  if (!read_rows(x, cosine, sine, rows, out, &args, &dtype)) return false;
  const int64_t B = args.B, L = args.L;
  Tensor start, shown{}, last{}, kept{};
  const bool about = num_shadow >= 0 && num_shadow <= L && view(block_start, kInt64, &start) && start.ndim == 1 &&
                     start.shape[0] == B &&
                     (visible.is_none() || (view(visible, kBool, &shown) && has_shape(shown, {B, L}))) &&
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

void pack_trunk(const py::sequence& weights, const object& packed, int threads) {
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

}  // namespace ordinary
}  // namespace wino
