// Waits until the host sends a byte, runs the workload and prints its result, ticks of the 10 MHz clock and
// instructions retired, again and again; powers off at a `q`. Meanwhile the host looks at its own clocks.
#include "bench.h"

static volatile uint8_t *const uart = (volatile uint8_t *)0x10000000;
static volatile uint32_t *const test_device = (volatile uint32_t *)0x100000;

uint8_t start_byte;

__attribute__((weak)) void other_hart(uint64_t hart) { (void)hart; }

int serial_has_input(void) { return uart[5] & 1; }

void put(char c) {
  while ((uart[5] & 0x20) == 0) {}
  uart[0] = (uint8_t)c;
}

void put_hex(uint64_t value) {
  for (int shift = 60; shift >= 0; shift -= 4) put("0123456789abcdef"[value >> shift & 15]);
}

void put_figure(const char *name, uint64_t value) {
  put('@');
  while (*name) put(*name++);
  put(' ');
  put_hex(value);
  put('\n');
}

#ifndef ALONE
static uint8_t take(void) {
  while (!serial_has_input()) {}
  return uart[0];
}
#endif

static inline uint64_t retired(void) {
  uint64_t value;
  __asm__ volatile("csrr %0, instret" : "=r"(value));
  return value;
}

// The compiler may call these for loops and structures
void *memset(void *to, int value, unsigned long size) {
  for (uint8_t *at = to; size > 0; size--) *at++ = (uint8_t)value;
  return to;
}

void *memcpy(void *to, const void *from, unsigned long size) {
  const uint8_t *source = from;
  for (uint8_t *at = to; size > 0; size--) *at++ = *source++;
  return to;
}

static uint64_t run(uint64_t *for_ticks, uint64_t *for_retired) {
  uint64_t from_ticks = ticks(), from_retired = retired();
  uint64_t result = workload();
  *for_retired = retired() - from_retired;
  *for_ticks = ticks() - from_ticks;
  return result;
}

void bench_main(void) {
  uint64_t for_ticks, for_retired;
#ifdef ALONE
  run(&for_ticks, &for_retired);
#else
  for (;;) {
    put('.');
    start_byte = take();
    if (start_byte == 'q') break;
    uint64_t result = run(&for_ticks, &for_retired);
    put('=');
    put_hex(result);
    put(' ');
    put_hex(for_ticks);
    put(' ');
    put_hex(for_retired);
    put('\n');
  }
#endif
  *test_device = 0x5555;
}
