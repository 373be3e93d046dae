// The race checker. The compiler's -fsanitize=thread turns every access of the kernels into a call; these are the
// functions called. Two accesses to a byte, one of them a write, must be ordered by what CUDA's memory model orders
// them with: program order, the block's barrier, __syncwarp, or a fence, an atomic and a fence. Schedules do not
// matter: an access that is not ordered is found even if it happened to come at the right time.
#if defined(WINO_SHIM_RACES)

#include "races.h"

#include <algorithm>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

namespace shim {
namespace races {
namespace {

constexpr int kLanes = 32;
constexpr size_t kDescribed = 20;

// A moment of one thread: how many of its block's barriers, its warp's barriers and its own fences it has passed.
struct Moment {
  unsigned block, thread, barriers, warp_barriers, fences;
};

using Moments = std::vector<Moment>;

struct Access {
  Moment when;
  uint8_t bytes;  // of the word, one bit each
  bool write;
};

struct Thread {
  Moment now;
  std::shared_ptr<const Moments> known;     // moments of other blocks that come before
  std::shared_ptr<const Moments> released;  // by its last fence, for its next atomic
  Moments met;                              // at atomics since its last fence
};

using Words = std::unordered_map<uintptr_t, std::vector<Access>>;

const auto kNothing = std::make_shared<const Moments>();
std::vector<Thread> threads;
std::unordered_map<const void*, Moments> locations;  // what was released through each atomic
Words global_words, shared_words;
uintptr_t shared_begin, shared_end, stacks_begin, stacks_end;
int running = -1;
size_t found = 0;
std::string described;

bool same_warp(const Moment& a, const Moment& b) { return a.thread / kLanes == b.thread / kLanes; }

// Within a block.
bool comes_before(const Moment& a, const Moment& b) {
  if (a.thread == b.thread) return true;
  return a.barriers < b.barriers || (same_warp(a, b) && a.warp_barriers < b.warp_barriers);
}

bool is_ordered(const Moment& earlier, const Thread& thread) {
  if (earlier.block == thread.now.block) return comes_before(earlier, thread.now);
  for (const Moment& m : *thread.known) {
    if (m.block != earlier.block) continue;
    if (m.thread == earlier.thread ? earlier.fences < m.fences : comes_before(earlier, m)) return true;
  }
  return false;
}

std::shared_ptr<const Moments> joined(const std::shared_ptr<const Moments>& a, const Moments& b) {
  Moments all = *a;
  for (const Moment& m : b) {
    const bool has = std::any_of(all.begin(), all.end(), [&](const Moment& o) {
      return o.block == m.block && o.thread == m.thread && o.fences >= m.fences;
    });
    if (!has) all.push_back(m);
  }
  return all.size() == a->size() ? a : std::make_shared<const Moments>(std::move(all));
}

// The threads [first, last) know from here on what one of them knew.
void share(size_t first, size_t last) {
  std::shared_ptr<const Moments> all = threads[first].known;
  for (size_t t = first + 1; t < last; ++t) {
    if (threads[t].known != all) all = joined(all, *threads[t].known);
  }
  for (size_t t = first; t < last; ++t) threads[t].known = all;
}

void describe(uintptr_t address, const Access& one, const Access& other) {
  if (found++ >= kDescribed) return;
  const bool is_shared = address >= shared_begin && address < shared_end;
  const auto name = [](const Access& a) {
    return std::string(a.write ? "write" : "read") + " by block " + std::to_string(a.when.block) + " thread " +
           std::to_string(a.when.thread);
  };
  described += (is_shared ? "shared" : "global") + std::string(" memory: ") + name(one) + " and " + name(other) +
               " are not ordered\n";
}

void access_word(uintptr_t word, uint8_t bytes, bool write) {
  const bool is_shared = word >= shared_begin && word < shared_end;
  std::vector<Access>& before = (is_shared ? shared_words : global_words)[word];
  Thread& thread = threads[running];
  const Access access{thread.now, bytes, write};
  size_t kept = 0;
  for (const Access& old : before) {
    const bool same_thread = old.when.block == thread.now.block && old.when.thread == thread.now.thread;
    if ((old.bytes & bytes) && (old.write || write) && !same_thread && !is_ordered(old.when, thread)) {
      describe(word, old, access);
    }
    // What comes after this access also comes after what it replaces.
    const bool replaced =
        (old.bytes & ~bytes) == 0 && (write || !old.write) && (same_thread || (write && is_ordered(old.when, thread)));
    if (!replaced) before[kept++] = old;
  }
  before.resize(kept);
  before.push_back(access);
}

void access(const volatile void* address, size_t size, bool write) {
  if (running < 0) return;
  const auto begin = reinterpret_cast<uintptr_t>(address), end = begin + size;
  if (begin >= stacks_begin && begin < stacks_end) return;
  for (uintptr_t word = begin / 4 * 4; word < end; word += 4) {
    uint8_t bytes = 0;
    for (int i = 0; i < 4; ++i) bytes |= (word + i >= begin && word + i < end) << i;
    access_word(word, bytes, write);
  }
}

}  // namespace

void begin_launch(unsigned threads_per_block) {
  threads.assign(threads_per_block, {});
  locations.clear();
  global_words.clear();
}

void begin_block(unsigned block, void* shared, void* end_of_shared) {
  shared_begin = reinterpret_cast<uintptr_t>(shared);
  shared_end = reinterpret_cast<uintptr_t>(end_of_shared);
  shared_words.clear();
  for (unsigned t = 0; t < threads.size(); ++t) threads[t] = {{block, t, 0, 0, 0}, kNothing, nullptr, {}};
}

void run_thread(int thread) { running = thread; }

void block_barrier() {
  for (Thread& thread : threads) ++thread.now.barriers;
  share(0, threads.size());
}

void warp_barrier(unsigned warp) {
  const size_t first = static_cast<size_t>(warp) * kLanes, last = first + kLanes;
  for (size_t t = first; t < last; ++t) ++threads[t].now.warp_barriers;
  share(first, last);
}

void fence(int index) {
  Thread& thread = threads[index];
  thread.known = joined(thread.known, thread.met);
  thread.met.clear();
  ++thread.now.fences;
  Moments released = *thread.known;
  released.push_back(thread.now);
  thread.released = std::make_shared<const Moments>(std::move(released));
}

void atomic(int index, const void* address) {
  Thread& thread = threads[index];
  Moments& location = locations[address];
  thread.met.insert(thread.met.end(), location.begin(), location.end());
  if (thread.released != nullptr) location.insert(location.end(), thread.released->begin(), thread.released->end());
}

void ignore(void* begin, void* end) {
  stacks_begin = reinterpret_cast<uintptr_t>(begin);
  stacks_end = reinterpret_cast<uintptr_t>(end);
}

}  // namespace races
}  // namespace shim

#define WINO_SHIM_ACCESSES(size)                                                     \
  void __tsan_read##size(void* p) { shim::races::access(p, size, false); }           \
  void __tsan_write##size(void* p) { shim::races::access(p, size, true); }           \
  void __tsan_unaligned_read##size(void* p) { shim::races::access(p, size, false); } \
  void __tsan_unaligned_write##size(void* p) { shim::races::access(p, size, true); }

extern "C" {
WINO_SHIM_ACCESSES(1)
WINO_SHIM_ACCESSES(2)
WINO_SHIM_ACCESSES(4)
WINO_SHIM_ACCESSES(8)
WINO_SHIM_ACCESSES(16)
void __tsan_read_range(void* p, size_t size) { shim::races::access(p, size, false); }
void __tsan_write_range(void* p, size_t size) { shim::races::access(p, size, true); }
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}

// What was found since the last call, a line each.
__attribute__((visibility("default"))) const char* wino_shim_races() {
  static std::string last;
  last = std::move(shim::races::described);
  if (shim::races::found > shim::races::kDescribed) {
    last += std::to_string(shim::races::found - shim::races::kDescribed) + " more\n";
  }
  shim::races::described.clear();
  shim::races::found = 0;
  return last.c_str();
}
}

#endif
