// Prints known text on the serial port: 8 MiB by asking before every sixteen bytes, as drivers that know the FIFO do,
// or 1 MiB by asking before every byte, as early consoles do ('b').
#include "bench.h"

static volatile uint8_t *const uart = (volatile uint8_t *)0x10000000;

uint64_t workload(void) {
  uint64_t burst = start_byte == 'b' ? 1 : 16;
  uint64_t bytes = SCALED(burst == 1 ? 1 << 20 : 8 << 20) & ~63ul;
  uart[2] = 1; // FIFO on
  for (uint64_t at = 0; at < bytes; at += burst) {
    while ((uart[5] & 0x20) == 0) {}
    for (uint64_t i = at; i < at + burst; i++) uart[0] = (i & 63) == 63 ? '\n' : (uint8_t)('A' + (i & 15));
  }
  return bytes;
}
