// What one access to a device's register costs, in picoseconds, by register: the best of several stretches, so that
// neither the first accesses nor a moment in which the host did something else count.
#include "bench.h"
#include "pci.h"

/** Length of a stretch, in ticks: 20 ms */
#define STRETCH 200000
#define STRETCHES 6
#define ENTROPY 4

#define MEASURE(name, access)                                                        \
  do {                                                                               \
    uint64_t best = ~0ul;                                                            \
    for (int stretch = 0; stretch < STRETCHES; stretch++) {                          \
      uint64_t count = 0, from = ticks(), to;                                        \
      do {                                                                           \
        for (int i = 0; i < 100; i++) { access; }                                    \
        count += 100;                                                                \
        to = ticks();                                                                \
      } while (to - from < SCALED(STRETCH));                                         \
      uint64_t cost = (to - from) * 100000 / count;                                  \
      if (cost < best) best = cost;                                                  \
    }                                                                                \
    put_figure(name, best);                                                          \
  } while (0)

#define READ(type, address) (void)*(volatile type *)(address)
#define WRITE(type, address, value) *(volatile type *)(address) = (value)

#define SAMPLES 101
/** Between accesses that are to be alone, in ticks: 300 µs */
#define APART 3000

/** What one access costs, in picoseconds, after the device's thread has gone to sleep: the median. */
static uint64_t alone(uint64_t address) {
  uint64_t sorted[SAMPLES];
  for (int i = 0; i < SAMPLES; i++) {
    uint64_t from = ticks();
    while (ticks() - from < APART) {}
    from = ticks();
    if (address) READ(uint32_t, address);
    uint64_t cost = ticks() - from;
    int at = i;
    for (; at > 0 && sorted[at - 1] > cost; at--) sorted[at] = sorted[at - 1];
    sorted[at] = cost;
  }
  return sorted[SAMPLES / 2] * 100000;
}

uint64_t workload(void) {
  struct virtio entropy;
  MEASURE("uart-lsr", READ(uint8_t, 0x10000005));
  MEASURE("plic-claim", READ(uint32_t, 0x0c200004));
  MEASURE("mtime", READ(uint64_t, 0x0200bff8));
  MEASURE("time-csr", __asm__ volatile("rdtime t0" ::: "t0"));
  MEASURE("uart-scratch-write", WRITE(uint8_t, 0x10000007, 0x55));
  MEASURE("mtimecmp-write", WRITE(uint64_t, 0x02004000, ~0ul));
  MEASURE("virtio-mmio-interrupt", READ(uint32_t, 0x10008060));
  if (!open_virtio(ENTROPY, &entropy)) return 0;
  MEASURE("virtio-isr", READ(uint8_t, entropy.parts[ISR]));
  MEASURE("virtio-status", READ(uint8_t, entropy.parts[COMMON] + 20));
  MEASURE("virtio-select-write", WRITE(uint16_t, entropy.parts[COMMON] + 22, 0));
  MEASURE("pci-config", READ(uint32_t, entropy.config));
  put_figure("pci-config-alone", alone(entropy.config) - alone(0));
  return 1;
}
