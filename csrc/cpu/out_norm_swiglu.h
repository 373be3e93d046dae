// out_norm_swiglu as tasks.
#pragma once

#include "cpu/matrix.h"

WINO_CPU_BEGIN

template <typename T>
class OutNormSwiglu {
 public:
  using Weights = LayerWeights<T, 4>;

  static int64_t packed_bytes(const MlpArgs& args) { return Weights::bytes(args.linear, args.in_place); }
  static int64_t thread_bytes(const MlpArgs& args);

  OutNormSwiglu(const MlpArgs& args, Groups groups, char* packed)
      : args_(args),
        groups_(groups),
        tasks_(groups.tasks_of_rows(args.L, args.threads)),
        weights_(args.linear, args.in_place, packed) {}

  // The rows need the packed weights, which `packing` makes.
  Stage packing() const { return weights_.packing(); }
  Stage rows() const;

 private:
  void transform_rows(int64_t group, int64_t task, char* scratch) const;

  MlpArgs args_;
  Groups groups_;
  int64_t tasks_;  // of each group
  Weights weights_;
};

WINO_CPU_END
