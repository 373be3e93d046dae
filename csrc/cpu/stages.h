// Work in stages of groups of tasks. A task waits only for what it needs, so that threads do not wait for each other's
// last tasks between stages; while one is held up, the others come about a stage further.
#pragma once

#include <sched.h>

#include "cpu/isa.h"
#include "cpu/threads.h"
#include "cpu/tiles.h"

WINO_CPU_BEGIN

struct Stage {
  int64_t groups, tasks;  // tasks of each group
  void (*run)(const void* context, int64_t group, int64_t task, char* scratch);
  const void* context;
  const Stage* needs_group = nullptr;  // whose same group has to be done; nullptr: none
  const Stage* needs_all = nullptr;    // of which all groups have to be done
  int64_t* done = nullptr;             // [groups], tasks; set by run_stages
};

constexpr int kSpins = 4096;  // before a wait gives the core away: another thread may need it to finish its task

WINO_HD void wait_for(const Stage& stage, int64_t group) {
  for (int spins = 0; __atomic_load_n(stage.done + group, __ATOMIC_ACQUIRE) < stage.tasks; ++spins) {
    spins < kSpins ? Vec::pause() : static_cast<void>(sched_yield());
  }
}

struct StageRun {
  const Stage* stages;
  char* scratch;  // of the threads, one after the other
  int64_t thread_bytes, next_thread;
  TaskQueue queue;
};

// Tasks are taken in order, and wait only for earlier ones, which a running thread has taken: none waits for ever.
WINO_HD void run_tasks(void* context) {
  StageRun& run = *static_cast<StageRun*>(context);
  char* scratch = run.scratch + __atomic_fetch_add(&run.next_thread, 1, __ATOMIC_RELAXED) * run.thread_bytes;
  const Tiles tiles;
  const Stage* stage = run.stages;
  int64_t first = 0;
  for (int64_t task; run.queue.take(&task);) {
    for (; task >= first + stage->groups * stage->tasks; ++stage) first += stage->groups * stage->tasks;
    const int64_t group = (task - first) / stage->tasks;
    if (stage->needs_group != nullptr) wait_for(*stage->needs_group, group);
    if (const Stage* whole = stage->needs_all; whole != nullptr) {
      for (int64_t g = 0; g < whole->groups; ++g) wait_for(*whole, g);
    }
    stage->run(stage->context, group, (task - first) % stage->tasks, scratch);
    __atomic_fetch_add(stage->done + group, 1, __ATOMIC_RELEASE);
  }
}

// All tasks of the stages, which wait for none behind them. done: room for a number of each group of each stage;
// scratch: thread_bytes for each thread.
WINO_HD void run_stages(Stage* stages, int64_t count, int64_t* done, int threads, char* scratch, int64_t thread_bytes) {
  int64_t tasks = 0;
  for (int64_t i = 0; i < count; ++i) {
    stages[i].done = done;
    for (int64_t g = 0; g < stages[i].groups; ++g) *done++ = 0;
    tasks += stages[i].groups * stages[i].tasks;
  }
  StageRun run{stages, scratch, thread_bytes, 0, {tasks, 0}};
  run_on_threads(tasks < threads ? static_cast<int>(tasks) : threads, run_tasks, &run);
}

WINO_CPU_END
