// What every workload is: one function that computes for a while and gives a value that depends on all of it.
#pragma once
#include <stdint.h>

/** `n` rounds, or the share of them that a short run wants: at least one */
#ifndef PERCENT
#define PERCENT 100
#endif
#define SCALED(n) (((uint64_t)(n) * PERCENT + 99) / 100)

uint64_t workload(void);

/** What harts but the first do, in M-mode, from the start: nothing, unless a workload has it */
void other_hart(uint64_t hart);

/** The byte that the host started the workload with: some workloads have more than one way to go */
extern uint8_t start_byte;

void put(char c);
void put_hex(uint64_t value);
/** `@name value`, a line that the host reads beside the result */
void put_figure(const char *name, uint64_t value);
int serial_has_input(void);

static inline uint64_t next_random(uint64_t *state) {
  uint64_t x = *state;
  x ^= x << 13;
  x ^= x >> 7;
  x ^= x << 17;
  return *state = x;
}

/** 10 MHz, from the CLINT: the `time` CSR would do, but machines without firmware need not have it */
static inline uint64_t ticks(void) { return *(volatile uint64_t *)0x200bff8; }
