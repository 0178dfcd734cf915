// Memory copy: four doublewords an iteration, between buffers of 1 MiB.
#include "bench.h"

#define WORDS (1 << 17)
static uint64_t from[WORDS], to[WORDS];

__attribute__((noinline)) static void copy(uint64_t *restrict target, const uint64_t *restrict source, uint64_t words) {
  for (uint64_t i = 0; i < words; i += 4) {
    uint64_t a = source[i], b = source[i + 1], c = source[i + 2], d = source[i + 3];
    target[i] = a;
    target[i + 1] = b;
    target[i + 2] = c;
    target[i + 3] = d;
    __asm__ volatile("" ::: "memory");
  }
}

uint64_t workload(void) {
  uint64_t state = 3, sum = 0;
  for (uint32_t i = 0; i < WORDS; i++) from[i] = next_random(&state);
  for (uint64_t round = 0; round < SCALED(400); round++) {
    from[round]++;
    copy(to, from, WORDS);
  }
  for (uint32_t i = 0; i < WORDS; i++) sum = sum * 31 + to[i];
  return sum;
}
