// Integer mix: shifts, multiplications, divisions, unforeseeable branches.
#include "bench.h"

uint64_t workload(void) {
  uint64_t state = 88172645463325252ul, sum = 0;
  for (uint32_t i = 1; i <= 2500000; i++) {
    uint64_t x = next_random(&state);
    if (x & 1) sum += x * 0x9e3779b97f4a7c15ul;
    else sum ^= x >> 7;
    if ((x & 6) == 0) sum += x / (i | 3);
    switch (x >> 61) {
      case 0: sum = sum << 3 | sum >> 61; break;
      case 1: sum -= i; break;
      case 2: sum += (int32_t)x; break;
      default: sum ^= sum >> 11;
    }
  }
  return sum;
}
