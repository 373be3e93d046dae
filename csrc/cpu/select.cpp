#include "cpu/select.h"

#include <atomic>
#include <cerrno>
#include <cstring>

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace wino {
namespace cpu {

#if defined(WINO_BUILD_amx)
namespace amx {
extern const Kernels kKernels;
}
#endif
#if defined(WINO_BUILD_avx512bf16)
namespace avx512bf16 {
extern const Kernels kKernels;
}
#endif
#if defined(WINO_BUILD_avx512)
namespace avx512 {
extern const Kernels kKernels;
}
#endif
#if defined(WINO_BUILD_avx2)
namespace avx2 {
extern const Kernels kKernels;
}
#endif
#if defined(WINO_BUILD_neon)
namespace neon {
extern const Kernels kKernels;
}
#endif
namespace portable {
extern const Kernels kKernels;
}

namespace {

constexpr const char* kNotBuilt = "not in this build (another architecture, or the compiler lacks its flags)";

#if defined(WINO_BUILD_amx) || defined(WINO_BUILD_avx512bf16) || defined(WINO_BUILD_avx512) || defined(WINO_BUILD_avx2)

struct X86 {
  uint32_t basic_ecx = 0, extended_ebx = 0, extended_edx = 0, more_eax = 0;
  uint64_t os_state = 0;  // XCR0: the register state that the operating system saves

  X86() {
    uint32_t a, b, c, d;
    if (__get_cpuid(1, &a, &b, &c, &d)) basic_ecx = c;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
      extended_ebx = b;
      extended_edx = d;
    }
    if (__get_cpuid_count(7, 1, &a, &b, &c, &d)) more_eax = a;
    if (basic_ecx & bit_OSXSAVE) {
      uint32_t low, high;
      __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
      os_state = static_cast<uint64_t>(high) << 32 | low;
    }
  }
};

const X86& x86() {
  static const X86 features;
  return features;
}

const char* why_not_avx2() {
  constexpr uint32_t basic = bit_AVX | bit_FMA | bit_F16C;
  if ((x86().basic_ecx & basic) != basic || !(x86().extended_ebx & bit_AVX2)) return "the CPU lacks AVX2, FMA or F16C";
  constexpr uint64_t ymm = 0x6;
  return (x86().os_state & ymm) == ymm ? "" : "the operating system does not save the AVX registers";
}

const char* why_not_avx512() {
  constexpr uint32_t needed = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
  if (const char* reason = why_not_avx2(); *reason != '\0') return reason;
  if ((x86().extended_ebx & needed) != needed) return "the CPU lacks AVX-512 F, BW, DQ or VL";
  constexpr uint64_t zmm = 0xE6;
  return (x86().os_state & zmm) == zmm ? "" : "the operating system does not save the AVX-512 registers";
}

const char* why_not_avx512bf16() {
  if (const char* reason = why_not_avx512(); *reason != '\0') return reason;
  constexpr uint32_t bf16 = 1u << 5;
  return x86().more_eax & bf16 ? "" : "the CPU lacks AVX-512 BF16";
}

#if defined(WINO_BUILD_amx)

long ask_linux(long what, void* argument) {
#if defined(SYS_arch_prctl)
  return syscall(SYS_arch_prctl, what, argument);
#else
  return static_cast<void>(what), static_cast<void>(argument), -1;
#endif
}

constexpr long kTileData = 18;  // XFEATURE_XTILE_DATA

// Linux saves a process' tile registers once it has asked, for all of its threads and for what it forks; from then on
// no thread's signal stack may be too small for them. Hence asked for when they are to be used, and not before.
const char* request_tiles() {
  constexpr long kRequestPermission = 0x1023;
  if (ask_linux(kRequestPermission, reinterpret_cast<void*>(kTileData)) == 0) return "";
  return errno == ENOSPC ? "a thread's signal stack (sigaltstack) is too small for the tile registers"
                         : "the operating system does not let this process use AMX";
}

const char* why_not_amx() {
  if (const char* reason = why_not_avx512bf16(); *reason != '\0') return reason;
  constexpr uint32_t bf16 = 1u << 22, tiles = 1u << 24;
  if ((x86().extended_edx & (bf16 | tiles)) != (bf16 | tiles)) return "the CPU lacks AMX tiles or AMX BF16";
  constexpr long kGetSupported = 0x1021;
  constexpr uint64_t tile_state = 3ull << (kTileData - 1);
  uint64_t supported = 0;
  const bool asked = (x86().os_state & tile_state) == tile_state && ask_linux(kGetSupported, &supported) == 0;
  return asked && (supported & tile_state) == tile_state ? "" : "the operating system does not save the AMX registers";
}

#endif

#endif

const char* available() { return ""; }

struct Isa {
  const char* name;
  const Kernels* kernels;
  const char* (*why_not)();
  const char* (*begin)() = available;  // what has to be done before it is used; why it cannot be, "" when it can
};

// Widest first.
const Isa kIsas[] = {
#if defined(WINO_BUILD_amx)
    {"amx", &amx::kKernels, why_not_amx, request_tiles},
#endif
#if defined(WINO_BUILD_avx512bf16)
    {"avx512bf16", &avx512bf16::kKernels, why_not_avx512bf16},
#endif
#if defined(WINO_BUILD_avx512)
    {"avx512", &avx512::kKernels, why_not_avx512},
#endif
#if defined(WINO_BUILD_avx2)
    {"avx2", &avx2::kKernels, why_not_avx2},
#endif
#if defined(WINO_BUILD_neon)
    {"neon", &neon::kKernels, available},
#endif
    {"portable", &portable::kKernels, available},
};

const Isa* find(const char* name) {
  for (const Isa& candidate : kIsas) {
    if (strcmp(candidate.name, name) == 0) return &candidate;
  }
  return nullptr;
}

const Isa* widest() {
  for (const Isa& candidate : kIsas) {
    if (*candidate.why_not() == '\0' && *candidate.begin() == '\0') return &candidate;
  }
  return nullptr;  // never: portable always runs
}

std::atomic<const Isa*> g_in_use{nullptr};

const Isa& in_use() {
  if (const Isa* chosen = g_in_use.load(std::memory_order_relaxed)) return *chosen;
  const Isa *none = nullptr, *best = widest();
  return g_in_use.compare_exchange_strong(none, best) ? *best : *none;
}

}  // namespace

const Kernels& kernels() { return *in_use().kernels; }

const char* isa() { return in_use().name; }

const char* why_not_isa(const char* name) {
  const Isa* found = find(name);
  return found == nullptr ? kNotBuilt : found->why_not();
}

const char* select_isa(const char* name) {
  const char* reason = why_not_isa(name);
  if (*reason == '\0') reason = find(name)->begin();
  if (*reason == '\0') g_in_use.store(find(name), std::memory_order_relaxed);
  return reason;
}

}  // namespace cpu
}  // namespace wino
