// virtio 1.2 §3.1.1 (initialization), §2.7 (split queues), §4.1 (PCI), §4.2 (mmio).
#include "virtio.h"

#define MAX_DEVICES 16u
#define ECAM_BASE 0x30000000ul
#define PCI_MEMORY_BASE 0x40000000ul
#define PCI_IRQ 32u

enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8 };
enum { DESCRIPTOR_NEXT = 1, DESCRIPTOR_WRITE = 2 };

static struct device devices[MAX_DEVICES];
static unsigned device_count;
static uintptr_t pci_memory;

static uint16_t read16(uintptr_t address) { return *(volatile uint16_t *)address; }
static void write16(uintptr_t address, uint16_t value) { *(volatile uint16_t *)address = value; }

static void probe_mmio(void) {
  for (unsigned slot = 0; slot < VIRTIO_SLOTS && device_count < MAX_DEVICES; slot++) {
    uintptr_t base = VIRTIO_BASE + slot * VIRTIO_STRIDE;
    // "virt"; version 2 is the one without legacy
    if (read32(base) != 0x74726976 || read32(base + 4) != 2 || read32(base + 8) == 0) continue;
    devices[device_count++] = (struct device){
        .id = read32(base + 8),
        .interrupt = VIRTIO_IRQ + slot,
        .common = base,
        .notify = base + 0x50,
        .status = base + 0x60,
        .config = base + 0x100,
    };
  }
}

/** Gives each memory BAR an address of its own and remembers them in `bars` */
static void assign_bars(uintptr_t function, uintptr_t bars[6]) {
  for (unsigned bar = 0; bar < 6; bar++) {
    uintptr_t at = function + 0x10 + 4 * bar;
    uint32_t kind = read32(at);
    bars[bar] = 0;
    write32(at, 0xffffffff);
    uint32_t size = ~(read32(at) & ~15u) + 1;
    bool wide = (kind & 6) == 4;
    if ((kind & 1) == 0 && size != 0) {
      pci_memory = (pci_memory + size - 1) & ~((uintptr_t)size - 1);
      write32(at, (uint32_t)pci_memory);
      if (wide) write32(at + 4, 0);
      bars[bar] = pci_memory;
      pci_memory += size;
    }
    if (wide) bar++;
  }
}

static void probe_function(unsigned slot) {
  uintptr_t function = ECAM_BASE + ((uintptr_t)slot << 15);
  uint32_t identity = read32(function);
  if ((identity & 0xffff) != 0x1af4 || device_count == MAX_DEVICES) return;
  uint32_t id = identity >> 16;
  if (id >= 0x1040 && id < 0x1080) id -= 0x1040;
  else if (id >= 0x1000 && id < 0x1040) id = read16(function + 0x2e); // transitional: the subsystem says which
  else return;
  uintptr_t bars[6];
  assign_bars(function, bars);
  write16(function + 4, 0x0006); // memory space, bus master
  // Pin A is 1; QEMU's swizzle: lines 32 to 35 by slot and pin.
  struct device device = {.pci = true, .id = id, .interrupt = PCI_IRQ + (slot + read8(function + 0x3d) - 1) % 4};
  unsigned ttl = 48; // a list of capabilities that points back at itself ends
  for (uint8_t at = read8(function + 0x34); at >= 0x40 && ttl-- > 0; at = read8(function + at + 1)) {
    if (read8(function + at) != 0x09) continue; // vendor specific: virtio §4.1.4
    uint8_t kind = read8(function + at + 3), bar = read8(function + at + 4);
    if (kind < 1 || kind > 4 || bar > 5 || bars[bar] == 0) continue;
    uintptr_t address = bars[bar] + read32(function + at + 8);
    if (kind == 1) device.common = address;
    if (kind == 2) device.notify = address, device.notify_multiplier = read32(function + at + 16);
    if (kind == 3) device.status = address;
    if (kind == 4) device.config = address;
  }
  if (device.common != 0 && device.notify != 0 && device.status != 0) devices[device_count++] = device;
}

void virtio_probe(void) {
  device_count = 0;
  pci_memory = PCI_MEMORY_BASE;
  probe_mmio();
  for (unsigned slot = 0; slot < 32; slot++) probe_function(slot);
}

struct device *virtio_find(uint32_t id, unsigned nth) {
  for (unsigned index = 0; index < device_count; index++)
    if (devices[index].id == id && nth-- == 0) return &devices[index];
  return NULL;
}

static uint32_t status_get(struct device *device) {
  return device->pci ? read8(device->common + 20) : read32(device->common + 0x70);
}

static void status_set(struct device *device, uint32_t status) {
  if (device->pci) write8(device->common + 20, (uint8_t)status);
  else write32(device->common + 0x70, status);
}

bool virtio_begin(struct device *device) {
  uintptr_t common = device->common;
  status_set(device, 0);
  while (status_get(device) != 0) {
  }
  status_set(device, ACKNOWLEDGE | DRIVER);
  // Only VIRTIO_F_VERSION_1, bit 32: both words must be written.
  uintptr_t select = common + (device->pci ? 8 : 0x24), feature = common + (device->pci ? 12 : 0x20);
  write32(select, 0);
  write32(feature, 0);
  write32(select, 1);
  write32(feature, 1);
  status_set(device, ACKNOWLEDGE | DRIVER | FEATURES_OK);
  return (status_get(device) & FEATURES_OK) != 0;
}

static void write_address(uintptr_t at, const volatile void *address) {
  write32(at, (uint32_t)(uintptr_t)address);
  write32(at + 4, (uint32_t)((uintptr_t)address >> 32));
}

bool virtio_queue(struct device *device, uint16_t number, struct queue *queue) {
  uintptr_t common = device->common;
  for (uint8_t *byte = (uint8_t *)queue; byte < (uint8_t *)(queue + 1); byte++) *byte = 0;
  queue->number = number;
  queue->pci = device->pci;
  if (device->pci) {
    write16(common + 22, number);
    if (read16(common + 24) < QUEUE_SIZE) return false;
    write16(common + 24, QUEUE_SIZE);
    write_address(common + 32, queue->table);
    write_address(common + 40, &queue->available);
    write_address(common + 48, &queue->used);
    queue->notify = device->notify + read16(common + 30) * device->notify_multiplier;
    write16(common + 28, 1);
  } else {
    write32(common + 0x30, number);
    if (read32(common + 0x34) < QUEUE_SIZE) return false;
    write32(common + 0x38, QUEUE_SIZE);
    write_address(common + 0x80, queue->table);
    write_address(common + 0x90, &queue->available);
    write_address(common + 0xa0, &queue->used);
    queue->notify = device->notify;
    write32(common + 0x44, 1);
  }
  return true;
}

void virtio_ready(struct device *device) { status_set(device, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK); }

void virtio_interrupt(uint32_t source) {
  for (unsigned index = 0; index < device_count; index++) {
    struct device *device = &devices[index];
    if (device->interrupt != source) continue;
    uint32_t status = device->pci ? read8(device->status) : read32(device->status); // PCI: reading lowers the line
    if (!device->pci && status != 0) write32(device->common + 0x64, status);
    if (status & 2) device->config_changed = true;
  }
}

uint64_t virtio_sources(void) {
  uint64_t sources = 0;
  for (unsigned index = 0; index < device_count; index++) sources |= 1ul << devices[index].interrupt;
  return sources;
}

void queue_offer(struct queue *queue, uint16_t first, const struct buffer *buffers, unsigned count) {
  for (unsigned index = 0; index < count; index++) {
    bool more = index + 1 < count;
    queue->table[first + index] = (struct descriptor){
        .address = (uint64_t)buffers[index].address,
        .length = buffers[index].length,
        .flags = (uint16_t)((more ? DESCRIPTOR_NEXT : 0) | (buffers[index].device_writes ? DESCRIPTOR_WRITE : 0)),
        .next = (uint16_t)(more ? first + index + 1 : 0),
    };
  }
  queue->available.ring[queue->available.index % QUEUE_SIZE] = first;
  fence(); // the entry before the index, §2.7.13.3
  *(volatile uint16_t *)&queue->available.index = (uint16_t)(queue->available.index + 1);
  fence(); // the index before the notification
  if (queue->pci) write16(queue->notify, queue->number); // §4.1.5.2; mmio registers are whole words, §4.2.2.2
  else write32(queue->notify, queue->number);
}

bool queue_take(struct queue *queue, struct used_entry *entry) {
  if (*(volatile uint16_t *)&queue->used.index == queue->taken) return false;
  fence();
  *entry = queue->used.ring[queue->taken % QUEUE_SIZE];
  queue->taken++;
  return true;
}

void queue_run(struct queue *queue, const struct buffer *buffers, unsigned count) {
  struct used_entry entry;
  queue_offer(queue, 0, buffers, count);
  while (!queue_take(queue, &entry)) sleep_and_take();
}
