// shadow_attention as tasks.
#pragma once

#include "cpu/matrix.h"
#include "cpu/stages.h"

WINO_CPU_BEGIN

template <typename T>
class ShadowAttention {
 public:
  static int64_t thread_bytes(const AttentionArgs& args);

  ShadowAttention(const AttentionArgs& args, Groups groups);

  Stage heads() const;

 private:
  void attend_chunk(int64_t b, int64_t key_head, int64_t chunk, char* scratch) const;

  AttentionArgs args_;
  Groups groups_;
  int64_t chunks_;  // tasks that share a head's queries
};

WINO_CPU_END
