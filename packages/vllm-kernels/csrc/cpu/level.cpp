#include "level.h"

#include <cpuid.h>
#include <cstdint>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

bool bit(uint32_t word, int index) { return word >> index & 1; }

uint64_t saved_by_system() {  // XCR0: which registers the system saves on a context switch
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

// Linux gives a process the 8 KiB of tile registers only when asked (arch_prctl, ARCH_REQ_XCOMP_PERM of XTILEDATA).
bool ask_for_tiles() { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

}  // namespace

Level detect_level() {
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return kNone;
  const bool fma = bit(c, 12), osxsave = bit(c, 27), avx = bit(c, 28), f16c = bit(c, 29);
  if (!(fma && osxsave && avx && f16c)) return kNone;
  const uint64_t saved = saved_by_system();
  if ((saved & 0x6) != 0x6) return kNone;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return kNone;
  const uint32_t leaf7_b = b, leaf7_c = c, leaf7_d = d;
  if (!bit(leaf7_b, 5)) return kNone;  // AVX2
  // F, DQ, BW, VL
  if (!(bit(leaf7_b, 16) && bit(leaf7_b, 17) && bit(leaf7_b, 30) && bit(leaf7_b, 31))) return kAvx2;
  if ((saved & 0xe6) != 0xe6) return kAvx2;
  const bool vbmi = bit(leaf7_c, 1), vnni = bit(leaf7_c, 11);
  const bool bf16 = __get_cpuid_count(7, 1, &a, &b, &c, &d) && bit(a, 5);
  if (!(vbmi && vnni && bf16)) return kAvx512;
  const bool amx = bit(leaf7_d, 22) && bit(leaf7_d, 24) && bit(leaf7_d, 25);  // BF16, TILE, INT8
  if (!amx || (saved & 0x60000) != 0x60000 || !ask_for_tiles()) return kAvx512Bf16;
  return kAmx;
}
