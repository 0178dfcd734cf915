// virtio 1.2 drivers' common part: finding devices on both transports, and split queues.
#pragma once
#include "firmware.h"

#define QUEUE_SIZE 16u
#define DEVICE_BLOCK 2u
#define DEVICE_GPU 16u
#define DEVICE_INPUT 18u

struct descriptor {
  uint64_t address;
  uint32_t length;
  uint16_t flags;
  uint16_t next;
};

struct used_entry {
  uint32_t id;
  uint32_t length;
};

/** One split queue, memory and place in it */
struct queue {
  struct descriptor table[QUEUE_SIZE] __attribute__((aligned(16)));
  struct {
    uint16_t flags, index, ring[QUEUE_SIZE], event;
  } available __attribute__((aligned(4)));
  struct {
    uint16_t flags, index;
    struct used_entry ring[QUEUE_SIZE];
    uint16_t event;
  } used __attribute__((aligned(4)));
  uint16_t taken;
  uint16_t number;
  bool pci;
  uintptr_t notify;
};

/** A device that has been found */
struct device {
  bool pci;
  uint32_t id;
  uint32_t interrupt;
  uintptr_t common; // mmio: the register window
  uintptr_t notify;
  uintptr_t status; // mmio: InterruptStatus; PCI: the ISR byte
  uintptr_t config;
  uint32_t notify_multiplier;
  volatile bool config_changed;
};

struct buffer {
  const volatile void *address;
  uint32_t length;
  bool device_writes;
};

/** Looks at all mmio slots and at all functions of PCI bus 0 */
void virtio_probe(void);
/** The nth device of a kind; NULL where there is none */
struct device *virtio_find(uint32_t id, unsigned nth);
/** Reset to FEATURES_OK with VERSION_1 only; false where the device refuses */
bool virtio_begin(struct device *device);
bool virtio_queue(struct device *device, uint16_t number, struct queue *queue);
void virtio_ready(struct device *device);
void virtio_interrupt(uint32_t source);
/** Bits of PLIC sources that devices use */
uint64_t virtio_sources(void);

/** Puts one chain at descriptor `first` and makes it available; the device is told */
void queue_offer(struct queue *queue, uint16_t first, const struct buffer *buffers, unsigned count);
/** True when the device has returned a chain; its first descriptor and length */
bool queue_take(struct queue *queue, struct used_entry *entry);
/** Offers and sleeps until it is back */
void queue_run(struct queue *queue, const struct buffer *buffers, unsigned count);
