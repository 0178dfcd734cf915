// The disk: sectors that prove themselves. Sector s written as the firmware's kth write holds, as 64-bit words:
//   word 0  "caisson!"    word 1  s    word 2  k    word i  pattern(s, k, i)
// A log in RAM remembers the last k of each sector written, so `disk verify` finds any that was lost, and a program
// outside, which reads the same image, can check each sector by itself.
#include "virtio.h"

#define WORDS 64u
#define LOG_SIZE 4096u
#define MAGIC 0x216e6f7373696163ul
enum { READ = 0, WRITE = 1, FLUSH = 4 };

static struct device *device;
static struct queue queue;
static uint64_t sectors;
static uint64_t writes; // k
static uint64_t rate;   // writes a second
static uint64_t paid_until;
static uint64_t errors;
static struct {
  uint64_t sector, stamp;
} log[LOG_SIZE];
static uint32_t log_count;
static uint64_t data[WORDS];
static struct {
  uint32_t type, reserved;
  uint64_t sector;
} header;
static volatile uint8_t status;

void disk_init(void) {
  device = virtio_find(DEVICE_BLOCK, 0);
  sectors = writes = rate = errors = log_count = 0;
  if (device == NULL) return;
  if (!virtio_begin(device) || !virtio_queue(device, 0, &queue)) {
    device = NULL;
    return;
  }
  virtio_ready(device);
  sectors = read32(device->config) | (uint64_t)read32(device->config + 4) << 32;
}

static uint64_t pattern(uint64_t sector, uint64_t stamp, unsigned word) {
  uint64_t value = (sector << 32 ^ stamp << 8 ^ word) * 0x9e3779b97f4a7c15ul;
  return value ^ value >> 31;
}

static bool run(uint32_t type, uint64_t sector) {
  header.type = type;
  header.sector = sector;
  status = 0xff;
  struct buffer buffers[3] = {{&header, 16, false}, {data, sizeof data, type == READ}, {&status, 1, true}};
  if (type == FLUSH) {
    buffers[1] = buffers[2];
    queue_run(&queue, buffers, 2);
  } else {
    queue_run(&queue, buffers, 3);
  }
  if (status != 0) errors++;
  return status == 0;
}

static bool write_sector(uint64_t sector) {
  uint64_t stamp = ++writes;
  data[0] = MAGIC, data[1] = sector, data[2] = stamp;
  for (unsigned word = 3; word < WORDS; word++) data[word] = pattern(sector, stamp, word);
  uint32_t entry = 0;
  while (entry < log_count && log[entry].sector != sector) entry++;
  if (entry == LOG_SIZE) return false; // what could not be remembered could not be verified
  if (!run(WRITE, sector)) return false;
  log[entry].sector = sector;
  log[entry].stamp = stamp;
  if (entry == log_count) log_count++;
  return true;
}

/** True when `data` is sector `sector` as its write `stamp` left it */
static bool holds(uint64_t sector, uint64_t stamp) {
  if (data[0] != MAGIC || data[1] != sector || data[2] != stamp) return false;
  for (unsigned word = 3; word < WORDS; word++)
    if (data[word] != pattern(sector, stamp, word)) return false;
  return true;
}

static void verify(void) {
  uint64_t bad = 0;
  for (uint32_t entry = 0; entry < log_count; entry++) {
    if (run(READ, log[entry].sector) && holds(log[entry].sector, log[entry].stamp)) continue;
    if (bad++ == 0) print("disk verify: first bad sector %u, write %u\n", log[entry].sector, log[entry].stamp);
  }
  print("disk verify: %s sectors=%u bad=%u writes=%u errors=%u\n", bad == 0 && errors == 0 ? "OK" : "BAD",
        (uint64_t)log_count, bad, writes, errors);
}

void disk_set_rate(uint64_t writes_per_second) {
  rate = writes_per_second;
  paid_until = now();
}

void disk_command(const char *verb, bool has_number, uint64_t value) {
  if (device == NULL) {
    print("error: no disk\n");
  } else if (same(verb, "read") && has_number && value < sectors) {
    if (!run(READ, value)) print("disk read %u: error %u\n", value, (uint64_t)status);
    else if (data[0] == MAGIC)
      print("disk read %u: ours, write %u, %s\n", value, data[2], holds(value, data[2]) ? "OK" : "BAD");
    else print("disk read %u: %w %w %w %w\n", value, data[0], data[1], data[2], data[3]);
  } else if (same(verb, "write") && has_number && value < sectors) {
    if (write_sector(value)) print("disk write %u: write %u\n", value, writes);
    else print("disk write %u: error %u\n", value, (uint64_t)status);
  } else if (same(verb, "load") && has_number && value <= 100000) {
    disk_set_rate(value);
    print("disk load: %u writes a second\n", value);
  } else if (same(verb, "flush")) {
    print("disk flush: %s\n", run(FLUSH, 0) ? "OK" : "error");
  } else if (same(verb, "verify")) {
    verify();
  } else if (same(verb, "info")) {
    print("disk: sectors=%u writes=%u logged=%u load=%u errors=%u bus=%s\n", sectors, writes, (uint64_t)log_count, rate, errors,
          device->pci ? "pci" : "mmio");
  } else {
    print("error: disk info | read SECTOR | write SECTOR | load WRITES_PER_SECOND | flush | verify\n");
  }
}

uint64_t disk_rate(void) { return rate; }

void disk_catch_up(void) {
  if (rate == 0 || device == NULL) return;
  uint64_t time = now();
  if (time - paid_until > TICKS_PER_SECOND / 20) paid_until = time - TICKS_PER_SECOND / 20;
  uint64_t due = (time - paid_until) * rate / TICKS_PER_SECOND;
  paid_until += due * TICKS_PER_SECOND / rate;
  // Scattered over at most 2048 sectors, so that the log remembers all of them.
  uint64_t window = sectors < 2048 ? sectors : 2048;
  while (due-- > 0 && window > 0) write_sector(writes * 0x9e3779b1ul % window);
}
