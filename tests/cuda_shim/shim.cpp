// Blocks, fibers and what brings them together.
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "cuda_runtime.h"
#include "races.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

extern "C" char __start_wino_shared[], __stop_wino_shared[];

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace shim {
namespace {

constexpr size_t kStackBytes = 64 * 1024 + 7 * 64;  // not a power of two: the stacks' ends would share cache lines

#if defined(__x86_64__)

struct Context {
  void* stack_pointer;
};

extern "C" void wino_shim_switch(void** save, void* load);
__asm__(
    ".text\n"
    ".globl wino_shim_switch\n"
    ".hidden wino_shim_switch\n"
    ".type wino_shim_switch,@function\n"
    "wino_shim_switch:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  ret\n"
    ".size wino_shim_switch,.-wino_shim_switch\n");

void prepare(Context& context, char* stack, void (*entry)()) {
  // The return address lies where a call would have put it; six registers are popped before it.
  auto top = reinterpret_cast<uintptr_t>(stack + kStackBytes) / 16 * 16 - 16;
  auto** slot = reinterpret_cast<void**>(top);
  *slot = reinterpret_cast<void*>(entry);
  slot[1] = nullptr;
  for (int i = 1; i <= 6; ++i) slot[-i] = nullptr;
  context.stack_pointer = slot - 6;
}

void change(Context& from, const Context& to) { wino_shim_switch(&from.stack_pointer, to.stack_pointer); }

#else

struct Context {
  ucontext_t of_system;
};

void prepare(Context& context, char* stack, void (*entry)()) {
  getcontext(&context.of_system);
  context.of_system.uc_stack.ss_sp = stack;
  context.of_system.uc_stack.ss_size = kStackBytes;
  context.of_system.uc_link = nullptr;
  makecontext(&context.of_system, entry, 0);
}

void change(Context& from, const Context& to) { swapcontext(&from.of_system, &to.of_system); }

#endif

enum State : int { kReady, kInWarp, kInBlock, kOut };

struct Thread {
  Context context;
  State state;
  const char* site;  // of the barrier it waits at
};

struct Warp {
  unsigned arrived;
  uint64_t given[kWarpSize], taken[kWarpSize];
};

struct Options {
  std::string dropped;
  uint64_t seed = 0;
};
Options options;
std::mutex launches;  // one at a time: static variables stand for shared memory
char* stacks = nullptr;
unsigned stacks_made = 0;

// The block that runs.
struct Block {
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<unsigned> order;  // in which threads are looked at
  unsigned next = 0, alive = 0, waiting = 0, votes = 0, tally = 0;
  int running = -1;
  Context scheduler;
  const std::function<void()>* kernel = nullptr;
  std::string failure;
};
Block block;

void resume(unsigned index) {
  Context& from = block.running < 0 ? block.scheduler : block.threads[block.running].context;
  block.running = static_cast<int>(index);
  threadIdx.x = index;
  races::run_thread(block.running);
  change(from, block.threads[index].context);
}

void leave_block() {
  Context& from = block.threads[block.running].context;
  block.running = -1;
  races::run_thread(-1);
  change(from, block.scheduler);
}

void fail(const std::string& why) {
  if (block.failure.empty()) block.failure = why;
  leave_block();
}

// Lets another thread run until this one can go on.
void wait() {
  const unsigned n = static_cast<unsigned>(block.threads.size()), self = block.running;
  for (unsigned looked = 0; looked < n; ++looked) {
    const unsigned candidate = block.order[block.next];
    block.next = (block.next + 1) % n;
    if (block.threads[candidate].state != kReady) continue;
    if (candidate != self) resume(candidate);
    return;
  }
  if (block.alive == 0) return leave_block();
  std::string where;
  for (const Thread& thread : block.threads) {
    if (thread.state == kOut || thread.state == kReady) continue;
    where = thread.state == kInWarp ? "a warp" : thread.site;
    break;
  }
  fail("deadlock: some threads wait in " + where + " and the others have passed it or wait elsewhere");
}

// Of all that are alive, each waits at the block's barrier: they go on.
void complete_barrier() {
  const char* site = nullptr;
  for (Thread& thread : block.threads) {
    if (thread.state != kInBlock) continue;
    if (site != nullptr && strcmp(site, thread.site) != 0) {
      return fail(std::string("threads of a block wait at different barriers: ") + site + ", " + thread.site);
    }
    site = thread.site;
    thread.state = kReady;
  }
  block.tally = block.votes;
  block.waiting = block.votes = 0;
  races::block_barrier();
}

void run_thread() {
  (*block.kernel)();
  block.threads[block.running].state = kOut;
  --block.alive;
  if (block.alive > 0 && block.waiting == block.alive) complete_barrier();
  wait();
  abort();  // never: a thread that is out does not run again
}

bool is_dropped(const char* site) {
  if (options.dropped.empty()) return false;
  const size_t length = strlen(site), wanted = options.dropped.size();
  return length >= wanted && options.dropped == site + (length - wanted);
}

void make_stacks(unsigned number) {
  if (number <= stacks_made) return;
  if (stacks != nullptr) munmap(stacks, stacks_made * kStackBytes);
  void* memory = mmap(nullptr, number * kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) abort();
  stacks = static_cast<char*>(memory);
  stacks_made = number;
  races::ignore(stacks, stacks + number * kStackBytes);
}

// Forward, backward or shuffled.
void arrange(std::vector<unsigned>& order, std::mt19937_64& random) {
  std::iota(order.begin(), order.end(), 0u);
  const uint64_t kind = random() % 4;
  if (kind == 1) std::reverse(order.begin(), order.end());
  if (kind >= 2) std::shuffle(order.begin(), order.end(), random);
}

void run_block(unsigned n, unsigned index, std::mt19937_64& random) {
  static const unsigned char kPoison[] = {0xFF, 0x7F, 0x00, 0xA5};
  memset(__start_wino_shared, kPoison[random() % 4], __stop_wino_shared - __start_wino_shared);
  for (unsigned t = 0; t < n; ++t) {
    Thread& thread = block.threads[t];
    thread.state = kReady;
    prepare(thread.context, stacks + t * kStackBytes, run_thread);
  }
  for (Warp& warp : block.warps) warp.arrived = 0;
  blockIdx.x = index;
  arrange(block.order, random);
  block.next = block.waiting = block.votes = 0;
  block.alive = n;
  races::begin_block(index, __start_wino_shared, __stop_wino_shared);
  resume(block.order[0]);
}

}  // namespace

cudaError_t run(dim3 grid, dim3 threads, const std::function<void()>& kernel) {
  const std::lock_guard<std::mutex> one_at_a_time(launches);
  const unsigned n = threads.x;
  if (n == 0 || n % kWarpSize != 0 || grid.x == 0) return cudaErrorInvalidConfiguration;
  make_stacks(n);
  blockDim = threads;
  gridDim = grid;
  block.threads.resize(n);
  block.order.resize(n);
  block.warps.resize(n / kWarpSize);
  block.kernel = &kernel;
  block.failure.clear();
  std::mt19937_64 random(options.seed++);
  std::vector<unsigned> blocks(grid.x);
  arrange(blocks, random);
  races::begin_launch(n);
  for (unsigned index : blocks) {
    run_block(n, index, random);
    if (block.failure.empty()) continue;
    fprintf(stderr, "cuda shim: block %u: %s\n", index, block.failure.c_str());
    return cudaErrorLaunchFailure;
  }
  return cudaSuccess;
}

const uint64_t* exchange(unsigned mask, uint64_t value) {
  if (mask != ~0u) fail("a warp operation on part of a warp, which the shim does not know");
  Thread& thread = block.threads[block.running];
  Warp& warp = block.warps[block.running / kWarpSize];
  warp.given[lane()] = value;
  warp.arrived |= 1u << lane();
  if (warp.arrived == mask) {
    memcpy(warp.taken, warp.given, sizeof(warp.taken));
    warp.arrived = 0;
    Thread* first = &block.threads[block.running / kWarpSize * kWarpSize];
    for (unsigned i = 0; i < kWarpSize; ++i) first[i].state = kReady;
  } else {
    thread.state = kInWarp;
    wait();
  }
  return warp.taken;
}

int meet(const char* site, bool predicate) {
  Thread& thread = block.threads[block.running];
  thread.state = kInBlock;
  thread.site = site;
  block.votes += predicate;
  if (++block.waiting == block.alive) complete_barrier();
  wait();
  return static_cast<int>(block.tally);
}

void syncthreads(const char* site) {
  if (!is_dropped(site)) meet(site, false);
}

int syncthreads_count(const char* site, bool predicate) { return is_dropped(site) ? predicate : meet(site, predicate); }

void syncwarp(const char* site, unsigned mask) {
  if (is_dropped(site)) return;
  const Warp& warp = block.warps[block.running / kWarpSize];
  const bool completes = (warp.arrived | 1u << lane()) == mask;
  // Only this orders memory accesses: a shuffle just moves values.
  if (completes) races::warp_barrier(block.running / kWarpSize);
  exchange(mask, 0);
}

void threadfence(const char* site) {
  if (!is_dropped(site)) races::fence(block.running);
}

uint32_t atomic_increment(uint32_t* address, uint32_t wrap_at) {
  races::atomic(block.running, address);
  const uint32_t before = *address;
  *address = before >= wrap_at ? 0 : before + 1;
  return before;
}

}  // namespace shim

cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
  }
  return "unknown";
}
const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 0;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = 1;  // the shim is its own driver
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int* devices) {
  *devices = 1;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const char* asked = getenv("WINO_SHIM_CAPABILITY");
  const int capability = asked == nullptr ? 90 : atoi(asked);
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? capability / 10 : capability % 10;
  return cudaSuccess;
}

// For the tests, through ctypes.
extern "C" __attribute__((visibility("default"))) void wino_shim_drop(const char* site) {
  shim::options.dropped = site;
}
extern "C" __attribute__((visibility("default"))) void wino_shim_seed(uint64_t seed) { shim::options.seed = seed; }
