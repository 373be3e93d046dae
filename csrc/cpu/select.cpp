#include "cpu/select.h"

#include <atomic>
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

// Linux saves a process' tile registers once it has asked: for all of its threads, and for what it forks.
bool may_use_tiles() {
#if defined(SYS_arch_prctl)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
#else
  return false;
#endif
}

const char* why_not_amx() {
  if (const char* reason = why_not_avx512bf16(); *reason != '\0') return reason;
  constexpr uint32_t bf16 = 1u << 22, tiles = 1u << 24;
  if ((x86().extended_edx & (bf16 | tiles)) != (bf16 | tiles)) return "the CPU lacks AMX tiles or AMX BF16";
  constexpr uint64_t tile_state = 0x60000;
  const bool saved = (x86().os_state & tile_state) == tile_state && may_use_tiles();
  return saved ? "" : "the operating system does not let the process use AMX";
}

#endif

const char* available() { return ""; }

struct Isa {
  const char* name;
  const Kernels* kernels;
  const char* (*why_not)();
};

// Widest first.
const Isa kIsas[] = {
#if defined(WINO_BUILD_amx)
    {"amx", &amx::kKernels, why_not_amx},
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
    if (*candidate.why_not() == '\0') return &candidate;
  }
  return nullptr;  // never: portable always runs
}

std::atomic<const Isa*>& current() {
  static std::atomic<const Isa*> in_use{widest()};
  return in_use;
}

}  // namespace

const Kernels& kernels() { return *current().load(std::memory_order_relaxed)->kernels; }

const char* isa() { return current().load(std::memory_order_relaxed)->name; }

const char* why_not_isa(const char* name) {
  const Isa* found = find(name);
  return found == nullptr ? kNotBuilt : found->why_not();
}

bool select_isa(const char* name) {
  const Isa* found = find(name);
  if (found == nullptr || *found->why_not() != '\0') return false;
  current().store(found, std::memory_order_relaxed);
  return true;
}

}  // namespace cpu
}  // namespace wino
