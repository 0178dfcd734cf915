// Configuration space of bus 0, enough to reach the registers of one virtio device.
#include "pci.h"

#define ECAM 0x30000000ul
/** Start of PCI's 32-bit memory window; each device that is opened gets 64 KiB of it */
#define WINDOW 0x40000000u

static uint32_t read32(uint32_t device, uint32_t at) { return *(volatile uint32_t *)(ECAM + (device << 15) + at); }
static void write32(uint32_t device, uint32_t at, uint32_t value) {
  *(volatile uint32_t *)(ECAM + (device << 15) + at) = value;
}
static uint8_t read8(uint32_t device, uint32_t at) { return *(volatile uint8_t *)(ECAM + (device << 15) + at); }

int open_virtio(uint32_t virtio_id, struct virtio *found) {
  for (uint32_t device = 1; device < 32; device++) {
    if (read32(device, 0) != ((0x1040 + virtio_id) << 16 | 0x1af4)) continue;
    found->config = ECAM + (device << 15);
    uint32_t base = WINDOW + (device << 16);
    for (uint32_t at = read8(device, 0x34); at != 0; at = read8(device, at + 1)) {
      if (read8(device, at) != 9) continue; // vendor specific
      uint32_t kind = read8(device, at + 3), bar = read8(device, at + 4);
      if (kind < 1 || kind > 4) continue;
      write32(device, 0x10 + 4 * bar, base);
      write32(device, 0x14 + 4 * bar, 0);
      found->parts[kind] = base + read32(device, at + 8);
      if (kind == 2) found->notify_multiplier = read32(device, at + 16);
    }
    write32(device, 4, (read32(device, 4) & 0xffff) | 6); // memory, bus master
    return 1;
  }
  return 0;
}
