#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace wino {
namespace cpu {

// Memory for one call. What is small is kept between the calls of a thread: given back to the system it would have to
// be cleared, page by page, at the next call.
class Scratch {
 public:
#ifdef WINO_SANITIZE  // of its exact size, and never kept: what is read or written past its end is seen
  explicit Scratch(int64_t bytes) : begin_(::operator new(bytes, std::align_val_t{kAlignment})) {}
  ~Scratch() { ::operator delete(begin_, std::align_val_t{kAlignment}); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  void* begin() const { return begin_; }

 private:
  static constexpr int64_t kAlignment = 64;
  void* begin_;
#else
  explicit Scratch(int64_t bytes) {
    thread_local std::unique_ptr<char[]> kept;
    thread_local int64_t size = 0;
    if (bytes > kMostKept) {
      own_.reset(new char[bytes + kAlignment]);
    } else if (size < bytes) {
      size = 0;
      kept.reset();
      kept.reset(new char[bytes + kAlignment]);
      size = bytes;
    }
    const auto address = reinterpret_cast<uintptr_t>(own_ != nullptr ? own_.get() : kept.get());
    begin_ = reinterpret_cast<void*>((address + kAlignment - 1) / kAlignment * kAlignment);
  }
  void* begin() const { return begin_; }

 private:
  static constexpr int64_t kAlignment = 64, kMostKept = 64 << 20;
  std::unique_ptr<char[]> own_;
  void* begin_;
#endif
};

}  // namespace cpu
}  // namespace wino
