// Just enough of the flattened device tree (Devicetree specification v0.4, chapter 5) to learn the size of RAM.
#include "firmware.h"

static uint32_t big32(const uint8_t *at) {
  return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static bool starts_with(const char *text, const char *prefix) {
  while (*prefix != 0)
    if (*text++ != *prefix++) return false;
  return true;
}

uint64_t fdt_ram_bytes(const void *tree) {
  const uint8_t *base = tree;
  if (base == NULL || ((uintptr_t)base & 3) != 0 || big32(base) != 0xd00dfeed) return 0;
  const uint8_t *at = base + big32(base + 8);
  const char *strings = (const char *)base + big32(base + 12);
  bool memory = false;
  for (;;) {
    uint32_t token = big32(at);
    at += 4;
    if (token == 1) { // FDT_BEGIN_NODE
      const char *name = (const char *)at;
      memory = starts_with(name, "memory@80000000");
      while (*at != 0) at++;
      at = (const uint8_t *)(((uintptr_t)at + 4) & ~3ul);
    } else if (token == 3) { // FDT_PROP
      uint32_t length = big32(at);
      const char *name = strings + big32(at + 4);
      at += 8;
      if (memory && length >= 16 && starts_with(name, "reg") && name[3] == 0)
        return (uint64_t)big32(at + 8) << 32 | big32(at + 12);
      at += (length + 3) & ~3u;
    } else if (token == 2) { // FDT_END_NODE
      memory = false;
    } else if (token != 4) { // anything but FDT_NOP ends the walk
      return 0;
    }
  }
}
