// Runs work on as many threads as the caller asks for, on Torch's own OpenMP runtime where there is one.
#pragma once

#include <cstdint>

namespace wino {
namespace cpu {

// Finds the OpenMP runtime that the loaded shared object `torch_library` uses. Returns its path, or why there is none.
const char* use_openmp_of(const char* torch_library);

// "openmp" or "pool": what a parallel call made now would run on.
const char* threading_layer();

// Calls body(context) once on each of up to `threads` threads, the calling one included, and waits for all of them.
// The bodies share the work out between them (see TaskQueue), so fewer threads than asked for are no error.
void run_on_threads(int threads, void (*body)(void*), void* context);

// Hands out 0 ... count - 1, each once.
struct TaskQueue {
  int64_t count;
  int64_t next;

  // True, and the task's number, until none is left.
  __attribute__((always_inline)) bool take(int64_t* task) {
    *task = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
    return *task < count;
  }
};

}  // namespace cpu
}  // namespace wino
