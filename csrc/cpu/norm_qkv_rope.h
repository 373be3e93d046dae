// norm_qkv_rope as tasks.
#pragma once

#include "cpu/matrix.h"

WINO_CPU_BEGIN

template <typename T>
class NormQkvRope {
 public:
  using Weights = LayerWeights<T, 3>;

  static int64_t packed_bytes(const QkvArgs& args) { return Weights::bytes(args.linear, args.in_place); }
  static int64_t thread_bytes(const QkvArgs& args);

  NormQkvRope(const QkvArgs& args, Groups groups, char* packed);

  // The rows need the packed weights, which `packing` makes.
  Stage packing() const { return weights_.packing(); }
  Stage rows() const;

 private:
  // Some of the projections, of all rows or of those that ask.
  struct Job {
    const int64_t* rows;  // [B, count]; nullptr: all
    int64_t count;        // a sequence
    int first, last;      // projections first ... last - 1
    int64_t tasks;        // of each group
  };

  // Which of the different rows a row is, where its rotary table begins, and which of the task's rows it is.
  struct Origin {
    int64_t row, table, place;
  };

  void project_rows(const Job& job, int64_t group, int64_t task, char* scratch) const;
  struct Columns {
    int projection;
    int64_t first, count;
  };

  // Of rows whose task begins with `row`; the sums are those of different rows from `first` on.
  void finish_columns(const Columns& of, const Origin* origins, int64_t count, int64_t row, int64_t first,
                      const float* sums) const;

  QkvArgs args_;
  Groups groups_;
  Job jobs_[2];
  int64_t together_;  // columns that are finished together: whole panels and whole heads
  Weights weights_;
};

WINO_CPU_END
