// Prints 8 MiB of known text on a virtio console, in buffers of 4 KiB, one at a time (virtio 1.2 §2.7, §4.1, §5.3).
#include "bench.h"
#include "pci.h"

#define CONSOLE 3
#define TRANSMIT 1
#define BUFFER 4096
/** In ticks: a second */
#define REST 10000000ul

struct descriptor {
  uint64_t address;
  uint32_t length;
  uint16_t flags, next;
};
static struct descriptor descriptors[2] __attribute__((aligned(16)));
static volatile struct { uint16_t flags, index, ring[2], event; } available __attribute__((aligned(2)));
static volatile struct { uint16_t flags, index; struct { uint32_t id, length; } ring[2]; uint16_t event; } used
  __attribute__((aligned(4)));
static uint8_t buffer[BUFFER];
static struct virtio device;
static uint16_t sent;

static volatile uint8_t *at8(uint32_t at) { return (volatile uint8_t *)(device.parts[COMMON] + at); }
static volatile uint16_t *at16(uint32_t at) { return (volatile uint16_t *)(device.parts[COMMON] + at); }
static volatile uint32_t *at32(uint32_t at) { return (volatile uint32_t *)(device.parts[COMMON] + at); }

static void write64(uint32_t at, uint64_t value) {
  *at32(at) = (uint32_t)value;
  *at32(at + 4) = (uint32_t)(value >> 32);
}

static void send(const uint8_t *from, uint32_t length) {
  descriptors[0] = (struct descriptor){.address = (uint64_t)from, .length = length};
  available.ring[sent % 2] = 0;
  __asm__ volatile("fence" ::: "memory");
  available.index = ++sent;
  __asm__ volatile("fence" ::: "memory");
  *(volatile uint16_t *)(device.parts[NOTIFY] + TRANSMIT * device.notify_multiplier) = TRANSMIT;
  while (used.index != sent) {}
  __asm__ volatile("fence" ::: "memory");
}

uint64_t workload(void) {
  uint64_t bytes = SCALED(8 << 20) & ~(uint64_t)(BUFFER - 1);
  static const uint8_t first[] = ".", last[] = "=0000000000000000 0000000000000000 0000000000000000\n";
  if (!open_virtio(CONSOLE, &device)) return 0;
  *at8(20) = 0;
  *at8(20) = 3; // acknowledge, driver
  *at32(8) = 1;
  *at32(12) = 1; // VIRTIO_F_VERSION_1
  *at8(20) = 11; // features
  *at16(22) = TRANSMIT;
  *at16(24) = 2;
  write64(32, (uint64_t)descriptors);
  write64(40, (uint64_t)&available);
  write64(48, (uint64_t)&used);
  *at16(28) = 1;
  *at8(20) = 15; // driver ok
  for (uint64_t i = 0; i < BUFFER; i++) buffer[i] = (i & 63) == 63 ? '\n' : (uint8_t)('A' + (i & 15));
  send(first, sizeof first - 1);
  for (uint64_t i = 0; i < bytes; i += BUFFER) send(buffer, BUFFER);
  // So that the last line is not lost where the host is still busy with what came before; it takes this off again
  uint64_t from = ticks();
  while (ticks() - from < REST) {}
  send(last, sizeof last - 1);
  return bytes;
}
