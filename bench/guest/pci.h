#pragma once
#include <stdint.h>

enum { COMMON = 1, NOTIFY, ISR, DEVICE };

/** Addresses of a virtio device's parts, by the kinds of virtio 1.2 §4.1.4; all BARs must be one and the same. */
struct virtio {
  uint64_t config;
  uint64_t parts[5];
  uint32_t notify_multiplier;
};

/** False where the bus has none of this kind. */
int open_virtio(uint32_t virtio_id, struct virtio *found);
