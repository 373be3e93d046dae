// Every file of an operator is compiled once per instruction set, into the namespace wino::cpu::<WINO_ISA>.
// Such files use no templates of the standard library: a weak symbol compiled for a wide instruction set could be the
// one the linker keeps for everybody.
#pragma once

#if !defined(WINO_ISA)
#error "compile with -DWINO_ISA=amx|avx512bf16|avx512|avx2|neon|portable"
#endif

#define WINO_CPU_BEGIN \
  namespace wino {     \
  namespace cpu {      \
  namespace WINO_ISA {
#define WINO_CPU_END \
  }                  \
  }                  \
  }
