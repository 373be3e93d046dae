// Runs a rule on every sequence's block, with scratch for the ranks of its positions.
#pragma once

#include <cstdlib>

#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/threads.h"

WINO_CPU_BEGIN

namespace {

constexpr int64_t kStackPositions = 1024;
// Positions below which another thread costs more than it brings (about 20 us of work).
constexpr int64_t kPositionsPerThread = 16384;

using BlockRule = void (*)(const void* args, int64_t b, uint64_t* keys);

struct BlockTasks {
  const BlockArgs* block;
  const void* args;
  BlockRule rule;
  TaskQueue queue;
};

WINO_HD uint8_t* flags(bool* p) { return reinterpret_cast<uint8_t*>(p); }

void run_blocks(void* context) {
  BlockTasks& tasks = *static_cast<BlockTasks*>(context);
  const int64_t K = tasks.block->K;
  uint64_t stack[2 * kStackPositions];
  uint64_t* keys = K <= kStackPositions ? stack : static_cast<uint64_t*>(malloc(2 * sizeof(uint64_t) * K));
  for (int64_t b; tasks.queue.take(&b);) tasks.rule(tasks.args, b, keys);
  if (keys != stack) free(keys);
}

void for_each_block(const BlockArgs& block, const void* args, BlockRule rule) {
  BlockTasks tasks{&block, args, rule, {block.B, 0}};
  const int64_t worth = block.B * block.K / kPositionsPerThread;
  run_on_threads(worth < block.threads ? static_cast<int>(worth) : block.threads, run_blocks, &tasks);
}

}  // namespace

WINO_CPU_END
