// virtio-gpu, 2D only (virtio 1.2 §5.7): one resource in guest RAM on scan-out 0, with a test card that moves.
#include "font.h"
#include "virtio.h"

#define LINE_DOTS 56u
#define BACKGROUND 0x202028u
#define FRAME_TICKS (TICKS_PER_SECOND / 5)

struct rectangle {
  uint32_t x, y, width, height;
};

static struct device *device;
static struct queue queue;
static uint32_t width, height, resource;
static uint32_t bar;
static bool moving;
static uint64_t next_frame;
static char typed[41];
static uint32_t typed_count;
// The largest request and the largest answer (display info: 24 bytes and 16 heads of 24)
static uint32_t request[16];
static volatile uint32_t answer[102];

static volatile uint32_t *pixels(void) { return (volatile uint32_t *)FRAME_BASE; }

static bool command(uint32_t type, unsigned words) {
  request[0] = type;
  for (unsigned index = 1; index < 6; index++) request[index] = 0; // no fence, context 0
  struct buffer buffers[2] = {{request, words * 4, false}, {answer, sizeof answer, true}};
  queue_run(&queue, buffers, 2);
  return answer[0] >= 0x1100 && answer[0] < 0x1200;
}

static void put_rectangle(unsigned at, struct rectangle area) {
  request[at] = area.x, request[at + 1] = area.y, request[at + 2] = area.width, request[at + 3] = area.height;
}

/** What was drawn becomes visible */
static void show(struct rectangle area) {
  uint64_t offset = ((uint64_t)area.y * width + area.x) * 4;
  put_rectangle(6, area);
  request[10] = (uint32_t)offset, request[11] = (uint32_t)(offset >> 32);
  request[12] = resource, request[13] = 0;
  command(0x105, 14); // TRANSFER_TO_HOST_2D
  put_rectangle(6, area);
  request[10] = resource, request[11] = 0;
  command(0x104, 12); // RESOURCE_FLUSH
}

static void fill(struct rectangle area, uint32_t colour) {
  for (uint32_t y = area.y; y < area.y + area.height && y < height; y++)
    for (uint32_t x = area.x; x < area.x + area.width && x < width; x++) pixels()[y * width + x] = colour;
}

static void draw_text(uint32_t x, uint32_t y, uint32_t scale, const char *text) {
  for (; *text != 0; text++, x += 6 * scale) {
    unsigned c = (uint8_t)*text;
    if (c >= 'a' && c <= 'z') c -= 32;
    if (c < 32 || c > 95) c = '?';
    for (unsigned row = 0; row < 7; row++)
      for (unsigned column = 0; column < 5; column++)
        if (font[c - 32][row] >> (4 - column) & 1)
          fill((struct rectangle){x + column * scale, y + row * scale, scale, scale}, 0xf0f0f0);
  }
}

static char *append_text(char *at, const char *text) {
  while (*text != 0) *at++ = *text++;
  *at = 0;
  return at;
}

static char *append_number(char *at, uint64_t value) {
  char digits[20];
  int count = 0;
  do digits[count++] = (char)('0' + value % 10);
  while ((value /= 10) != 0);
  while (count > 0) *at++ = digits[--count];
  *at = 0;
  return at;
}

/** The strip at the foot: counter, typed text, moving bar. Only what changes is drawn, so that idling stays cheap. */
static void draw_strip(void) {
  uint32_t top = height - 2 * LINE_DOTS;
  struct rectangle text = {16, top + 10, width - 32 < 528 ? width - 32 : 528, 44};
  struct rectangle track = {bar, top + 72, width - bar < 80 ? width - bar : 80, 24};
  char line[128];
  fill(text, BACKGROUND);
  append_number(append_text(line, "generation "), counter_generation());
  draw_text(16, top + 10, 2, line);
  append_text(append_text(line, "> "), typed);
  draw_text(16, top + 40, 2, line);
  show(text);
  fill(track, BACKGROUND);
  show(track);
  bar = bar + 16 + 64 < width ? bar + 16 : 0;
  track = (struct rectangle){bar, top + 72, 64, 24};
  fill(track, 0xffb000);
  show(track);
}

static void draw_card(void) {
  static const uint32_t colours[8] = {0xffffff, 0xffff00, 0x00ffff, 0x00ff00, 0xff00ff, 0xff0000, 0x0000ff, 0x000000};
  for (uint32_t index = 0; index < 8; index++) {
    uint32_t from = width * index / 8, to = width * (index + 1) / 8;
    fill((struct rectangle){from, 0, to - from, height / 2}, colours[index]);
  }
  for (uint32_t x = 0; x < width; x++) {
    uint32_t grey = x * 255 / width;
    fill((struct rectangle){x, height / 2, 1, height / 4}, grey << 16 | grey << 8 | grey);
  }
  fill((struct rectangle){0, height / 2 + height / 4, width, height}, BACKGROUND);
  draw_text(16, height / 2 + height / 4 + 12, 4, "caisson");
  show((struct rectangle){0, 0, width, height});
  draw_strip();
}

/** Asks for the size that the screen wants, and shows a resource of that size */
static bool set_up(void) {
  if (!command(0x100, 6)) return false; // GET_DISPLAY_INFO
  width = answer[8], height = answer[9];
  if (width < 64 || width > 4096) width = 640;
  if (height < 4 * LINE_DOTS || height > 4096 || (uint64_t)width * height * 4 > FRAME_MAX_BYTES) width = 640, height = 480;
  uint32_t old = resource++;
  request[6] = resource, request[7] = 2, request[8] = width, request[9] = height; // B8G8R8X8
  if (!command(0x101, 10)) return false;                                         // RESOURCE_CREATE_2D
  request[6] = resource, request[7] = 1;
  request[8] = (uint32_t)FRAME_BASE, request[9] = 0, request[10] = width * height * 4, request[11] = 0;
  if (!command(0x106, 12)) return false; // RESOURCE_ATTACH_BACKING
  put_rectangle(6, (struct rectangle){0, 0, width, height});
  request[10] = 0, request[11] = resource;
  if (!command(0x103, 12)) return false; // SET_SCANOUT
  if (old != 0) {
    request[6] = old, request[7] = 0;
    command(0x102, 8); // RESOURCE_UNREF
  }
  return true;
}

void display_init(void) {
  device = virtio_find(DEVICE_GPU, 0);
  moving = false;
  resource = 0;
  if (device == NULL) return;
  if (!virtio_begin(device) || !virtio_queue(device, 0, &queue)) {
    device = NULL;
    return;
  }
  virtio_ready(device);
  if (!set_up()) device = NULL;
}

bool display_present(void) { return device != NULL; }
bool display_moving(void) { return moving; }
void display_stop(void) { moving = false; }

bool display_draw(void) {
  if (device == NULL) return false;
  bar = 0;
  moving = true;
  next_frame = 0;
  draw_card();
  return true;
}

void display_print_size(void) { print("%ux%u", (uint64_t)width, (uint64_t)height); }

void display_tick(void) {
  if (device == NULL) return;
  if (device->config_changed) {
    device->config_changed = false;
    // §5.7.4: events_read has bit 0 for the display; the same bits written to events_clear clear it.
    write32(device->config + 4, read32(device->config));
    uint32_t old_width = width, old_height = height;
    if (set_up() && moving) draw_card();
    if (width != old_width || height != old_height) print("display: %ux%u\n", (uint64_t)width, (uint64_t)height);
  } else if (moving && now() >= next_frame) {
    next_frame = now() + FRAME_TICKS;
    draw_strip();
  }
}

void display_type(char c) {
  if (c == '\b') {
    if (typed_count > 0) typed_count--;
  } else if (c == '\n' || typed_count == sizeof typed - 1) {
    typed_count = 0;
  }
  if (c >= ' ') typed[typed_count++] = c;
  typed[typed_count] = 0;
  if (device != NULL && moving) draw_strip();
}
