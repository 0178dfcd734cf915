// A hash over bytes and one over words, as table look-ups and checksums do.
#include "bench.h"

static uint8_t data[65536];

uint64_t workload(void) {
  uint64_t state = 42;
  for (uint32_t i = 0; i < sizeof data; i++) data[i] = (uint8_t)next_random(&state);
  uint64_t fnv = 0xcbf29ce484222325ul;
  uint32_t a = 1, b = 0;
  for (int round = 0; round < 100; round++) {
    for (uint32_t i = 0; i < sizeof data; i++) {
      fnv = (fnv ^ data[i]) * 0x100000001b3ul;
      a += data[i];
      b += a;
    }
  }
  return fnv ^ ((uint64_t)b << 32 | a);
}
