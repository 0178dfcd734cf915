// Sv39 for S-mode: RAM in pages of 4 KiB, devices in pages of 2 MiB, all where they are.
#include "bench.h"

#define RAM_MIB 64
#define VALID 0x01ul
/** Readable, writable, executable, accessed, dirty */
#define LEAF (VALID | 0x0e | 0xc0)

static uint64_t root[512] __attribute__((aligned(4096)));
static uint64_t devices[512] __attribute__((aligned(4096)));
static uint64_t ram[512] __attribute__((aligned(4096)));
static uint64_t pages[RAM_MIB / 2][512] __attribute__((aligned(4096)));

static uint64_t table(const uint64_t *at) { return (uint64_t)at >> 12 << 10 | VALID; }

uint64_t page_tables(void) {
  root[0] = table(devices);
  root[1] = 1ul << 30 >> 12 << 10 | LEAF; // PCI's memory window
  root[2] = table(ram);
  for (uint64_t i = 0; i < 512; i++) devices[i] = (i << 21) >> 12 << 10 | LEAF;
  for (uint64_t i = 0; i < RAM_MIB / 2; i++) {
    ram[i] = table(pages[i]);
    for (uint64_t j = 0; j < 512; j++) pages[i][j] = (0x80000000ul + (i << 21) + (j << 12)) >> 12 << 10 | LEAF;
  }
  return 8ul << 60 | (uint64_t)root >> 12;
}
