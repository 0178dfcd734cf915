// How late timer interrupts come: a thousand ticks a second, with an idle hart between them or a busy one.
#include "bench.h"

#define PERIOD 10000
#define MOST 4000
#define MTIE 0x80ul

static volatile uint64_t *const mtimecmp = (volatile uint64_t *)0x2004000;
static volatile uint64_t due;
static volatile uint32_t count;
static volatile uint64_t missed;
static uint32_t late[MOST];

__attribute__((interrupt("machine"), aligned(4))) static void tick(void) {
  uint64_t now = ticks();
  if (now < due) return; // the line falls after the return: nothing to do
  if (count < MOST) late[count] = (uint32_t)(now - due);
  count++;
  due += PERIOD;
  // A tick that could not even begin before the next was due is a lost one
  while (due <= ticks()) {
    due += PERIOD;
    missed++;
  }
  *mtimecmp = due;
}

/** start_byte: 'i' idle between ticks, otherwise busy. */
uint64_t workload(void) {
  uint32_t wanted = (uint32_t)SCALED(2000);
  uint64_t state = 5, sum = 0;
  if (wanted > MOST) wanted = MOST;
  __asm__ volatile("csrw mtvec, %0" ::"r"(tick));
  due = ticks() + PERIOD;
  *mtimecmp = due;
  __asm__ volatile("csrs mie, %0" ::"r"(MTIE));
  __asm__ volatile("csrs mstatus, 8");
  while (count < wanted) {
    if (start_byte == 'i') __asm__ volatile("wfi");
    else {
      for (int i = 0; i < 1000; i++) sum += next_random(&state) * 3;
      __asm__ volatile("" ::"r"(sum));
    }
  }
  __asm__ volatile("csrc mstatus, 8");
  __asm__ volatile("csrc mie, %0" ::"r"(MTIE));
  for (uint32_t i = 0; i < wanted; i++) put_figure("late", late[i]);
  put_figure("missed", missed);
  return wanted;
}
