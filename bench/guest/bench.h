// What every workload is: one function that computes for a while and gives a value that depends on all of it.
#pragma once
#include <stdint.h>

uint64_t workload(void);

static inline uint64_t next_random(uint64_t *state) {
  uint64_t x = *state;
  x ^= x << 13;
  x ^= x >> 7;
  x ^= x << 17;
  return *state = x;
}
