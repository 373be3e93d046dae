#include "cpu/threads.h"

#include <dlfcn.h>
#include <pthread.h>

#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace wino {
namespace cpu {
namespace {

using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

GompParallel g_gomp_parallel = nullptr;
// Set in a forked child: the OpenMP team of the parent does not exist there, and waiting for it never ends.
bool g_forked = false;

// Threads that sleep between calls. Leaked on purpose: joining them at exit or in a forked child could hang.
class Pool {
 public:
  void run(int threads, void (*body)(void*), void* context) {
    std::unique_lock<std::mutex> exclusive(call_, std::try_to_lock);
    if (!exclusive.owns_lock()) return body(context);  // another thread is using the pool
    {
      std::lock_guard<std::mutex> lock(mutex_);
      while (size_ < threads - 1) std::thread([this, id = size_++] { work(id); }).detach();
      body_ = body;
      context_ = context;
      wanted_ = running_ = threads - 1;
      ++generation_;
    }
    wake_.notify_all();
    body(context);
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return running_ == 0; });
  }

 private:
  void work(int id) {
    uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return generation_ != seen; });
      seen = generation_;
      if (id >= wanted_) continue;
      auto* body = body_;
      void* context = context_;
      lock.unlock();
      body(context);
      lock.lock();
      if (--running_ == 0) done_.notify_one();
    }
  }

  std::mutex call_, mutex_;
  std::condition_variable wake_, done_;
  void (*body_)(void*) = nullptr;
  void* context_ = nullptr;
  int size_ = 0, wanted_ = 0, running_ = 0;
  uint64_t generation_ = 0;
};

Pool* g_pool = nullptr;
std::once_flag g_once;

void after_fork_in_child() {
  g_forked = true;
  if (g_pool != nullptr) g_pool = new Pool;
}

void initialise() {
  g_pool = new Pool;
  pthread_atfork(nullptr, nullptr, after_fork_in_child);
}

}  // namespace

const char* use_openmp_of(const char* torch_library) {
  static std::string answer;
  std::call_once(g_once, initialise);
  g_gomp_parallel = nullptr;
  void* library = dlopen(torch_library, RTLD_LAZY | RTLD_NOLOAD);
  if (library == nullptr) {
    answer = std::string("not loaded: ") + torch_library;
    return answer.c_str();
  }
  // Looked up through the library, so that its own dependencies answer and not another libgomp of the process.
  void* symbol = dlsym(library, "GOMP_parallel");
  dlclose(library);
  Dl_info info;
  if (symbol == nullptr || dladdr(symbol, &info) == 0) {
    answer = std::string("no GOMP_parallel behind ") + torch_library;
    return answer.c_str();
  }
  g_gomp_parallel = reinterpret_cast<GompParallel>(symbol);
  answer = info.dli_fname;
  return answer.c_str();
}

const char* threading_layer() { return g_gomp_parallel != nullptr && !g_forked ? "openmp" : "pool"; }

void run_on_threads(int threads, void (*body)(void*), void* context) {
  if (threads <= 1) return body(context);
  if (g_gomp_parallel != nullptr && !g_forked) {
    return g_gomp_parallel(body, context, static_cast<unsigned>(threads), 0);
  }
  std::call_once(g_once, initialise);
  g_pool->run(threads, body, context);
}

}  // namespace cpu
}  // namespace wino
