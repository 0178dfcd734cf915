// A program that writes new code for ever, makes it hot and leaves it: each function is written once, runs a loop of
// its own and is never needed again; on all harts at once. Ends when the host sends a byte.
#include "bench.h"

/** Of each hart */
#define AREA (4 << 20)
#define HARTS 8
/** Of one function, in instructions of four bytes */
#define LENGTH 32
#define REPORT 512

static uint32_t area[HARTS][AREA / 4] __attribute__((aligned(4096)));
static volatile int begun, ended;

static uint32_t immediate(uint32_t opcode, uint32_t kind, uint32_t rd, uint32_t rs, uint32_t value) {
  return (value & 0xfff) << 20 | rs << 15 | kind << 12 | rd << 7 | opcode;
}

/** `a0 = f(a0, a1)`: a1 rounds of additions, exclusive-ors and shifts with constants of its own. */
static void write_function(uint32_t *at, uint64_t *random) {
  enum { A0 = 10, A1 = 11, A2 = 12, T0 = 5 };
  uint32_t i = 0, head = 0;
  for (; i < LENGTH - 3; i++) {
    uint64_t bits = next_random(random);
    switch (bits & 3) {
      case 0: at[i] = immediate(0x13, 0, A0, A0, (uint32_t)(bits >> 8)); break;         // addi a0, a0, imm
      case 1: at[i] = immediate(0x13, 4, A0, A0, (uint32_t)(bits >> 8)); break;         // xori a0, a0, imm
      case 2: at[i] = immediate(0x13, 1, T0, A0, (uint32_t)(bits >> 8 & 31) + 1); break; // slli t0, a0, n
      default: at[i] = 0x00550533; break;                                                // add a0, a0, t0
    }
  }
  at[i++] = immediate(0x13, 0, A1, A1, 0xfff); // addi a1, a1, -1
  uint32_t back = (head - i) * 4;               // bne a1, zero, head
  at[i] = (back >> 12 & 1) << 31 | (back >> 5 & 0x3f) << 25 | 0 << 20 | A1 << 15 | 1 << 12 | (back >> 1 & 15) << 8 |
          (back >> 11 & 1) << 7 | 0x63;
  i++;
  at[i] = 0x00008067; // ret
}

/** Writes functions and runs each, until `done`; gives how many. */
static uint64_t work(uint64_t hart, int (*done)(void)) {
  uint64_t random = 2463534242ul + hart * 0x9e3779b97f4a7c15ul, value = 1, written = 0;
  for (uint32_t at = 0; !done(); at = (at + LENGTH) % (AREA / 4)) {
    uint32_t *code = area[hart] + at;
    write_function(code, &random);
    __asm__ volatile("fence.i" ::: "memory");
    value += ((uint64_t (*)(uint64_t, uint64_t))code)(value, 3000);
    if (++written % REPORT == 0 && hart == 0) put_figure("functions", written);
  }
  return written;
}

static int is_over(void) { return ended; }

void other_hart(uint64_t hart) {
  while (!begun) {}
  if (hart < HARTS) work(hart, is_over);
}

uint64_t workload(void) {
  begun = 1;
  uint64_t written = work(0, serial_has_input);
  ended = 1;
  return written;
}
