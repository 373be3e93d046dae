// What the race checker is told. Without WINO_SHIM_RACES nothing is checked and every call is empty.
#pragma once

#include <cstdint>

namespace shim {
namespace races {

#if defined(WINO_SHIM_RACES)
void begin_launch(unsigned threads_per_block);
void begin_block(unsigned block, void* shared, void* shared_end);
void run_thread(int thread);  // -1: none, accesses are not the kernel's
void block_barrier();
void warp_barrier(unsigned warp);
void fence(int thread);
void atomic(int thread, const void* address);
void ignore(void* begin, void* end);  // the threads' own stacks
#else
inline void begin_launch(unsigned) {}
inline void begin_block(unsigned, void*, void*) {}
inline void run_thread(int) {}
inline void block_barrier() {}
inline void warp_barrier(unsigned) {}
inline void fence(int) {}
inline void atomic(int, const void*) {}
inline void ignore(void*, void*) {}
#endif

}  // namespace races
}  // namespace shim
