// Runs the workload once and prints: its result, ticks of the 10 MHz clock, instructions retired. Then powers off.
#include "bench.h"

static volatile uint8_t *const uart = (volatile uint8_t *)0x10000000;
static volatile uint32_t *const test_device = (volatile uint32_t *)0x100000;

static void put(char c) {
  while ((uart[5] & 0x20) == 0) {}
  uart[0] = (uint8_t)c;
}

static void put_hex(uint64_t value) {
  for (int shift = 60; shift >= 0; shift -= 4) put("0123456789abcdef"[value >> shift & 15]);
}

static inline uint64_t ticks(void) {
  // CLINT mtime: the `time` CSR would do, but firmware-less machines need not have it
  return *(volatile uint64_t *)0x200bff8;
}

static inline uint64_t retired(void) {
  uint64_t value;
  __asm__ volatile("csrr %0, minstret" : "=r"(value));
  return value;
}

// The compiler may call these for loops and structures
void *memset(void *to, int value, unsigned long size) {
  for (uint8_t *at = to; size > 0; size--) *at++ = (uint8_t)value;
  return to;
}

void bench_main(void) {
  put('.'); // the host's clocks start here
  uint64_t from_ticks = ticks(), from_retired = retired();
  uint64_t result = workload();
  uint64_t to_retired = retired(), to_ticks = ticks();
  put_hex(result);
  put(' ');
  put_hex(to_ticks - from_ticks);
  put(' ');
  put_hex(to_retired - from_retired);
  put('\n');
  *test_device = 0x5555;
}
