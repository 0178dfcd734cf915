// virtio-input (virtio 1.2 §5.8): keys are echoed on the serial line and on the screen, the pointer by its buttons.
#include "virtio.h"

#define MAX_INPUTS 4u
enum { EV_KEY = 1, EV_REL = 2, EV_ABS = 3 };

struct event {
  uint16_t type, code;
  uint32_t value;
};

static struct {
  struct queue queue;
  volatile struct event events[QUEUE_SIZE];
} inputs[MAX_INPUTS];
static unsigned count;
static uint64_t keys;
static uint32_t pointer_x, pointer_y;

// Linux evdev codes 0 to 57 on a US keyboard; 0 where there is no character
static const char characters[] = "\0\0"
                                 "1234567890-=\b\0"
                                 "qwertyuiop[]\n\0"
                                 "asdfghjkl;'`\0"
                                 "\\zxcvbnm,./\0"
                                 "*\0 ";

static void offer(unsigned index, uint16_t slot) {
  struct buffer buffer = {&inputs[index].events[slot], sizeof(struct event), true};
  queue_offer(&inputs[index].queue, slot, &buffer, 1);
}

void input_init(void) {
  count = 0;
  keys = 0;
  for (unsigned nth = 0; nth < MAX_INPUTS; nth++) {
    struct device *device = virtio_find(DEVICE_INPUT, nth);
    if (device == NULL) return;
    if (!virtio_begin(device) || !virtio_queue(device, 0, &inputs[count].queue)) continue;
    virtio_ready(device);
    for (uint16_t slot = 0; slot < QUEUE_SIZE; slot++) offer(count, slot);
    count++;
  }
}

uint64_t input_keys(void) { return keys; }
unsigned input_count(void) { return count; }

static void handle(struct event event) {
  if (event.type == EV_ABS) {
    if (event.code == 0) pointer_x = event.value;
    if (event.code == 1) pointer_y = event.value;
  } else if (event.type == EV_REL) {
    print("wheel %u: %d\n", (uint64_t)event.code, (int64_t)(int32_t)event.value);
  } else if (event.type == EV_KEY && event.code >= 0x100) {
    print("button %u %s at %u %u\n", (uint64_t)event.code, event.value ? "down" : "up", (uint64_t)pointer_x,
          (uint64_t)pointer_y);
  } else if (event.type == EV_KEY) {
    keys++;
    print("key %u %s\n", (uint64_t)event.code, event.value == 0 ? "up" : event.value == 1 ? "down" : "repeat");
    if (event.value != 0 && event.code < sizeof characters && characters[event.code] != 0)
      display_type(characters[event.code]);
  }
}

void input_poll(void) {
  struct used_entry entry;
  for (unsigned index = 0; index < count; index++) {
    while (queue_take(&inputs[index].queue, &entry)) {
      if (entry.id >= QUEUE_SIZE) continue; // not a buffer of ours
      struct event event = {inputs[index].events[entry.id].type, inputs[index].events[entry.id].code,
                            inputs[index].events[entry.id].value};
      offer(index, (uint16_t)entry.id);
      handle(event);
    }
  }
}

bool input_pending(void) {
  for (unsigned index = 0; index < count; index++)
    if (*(volatile uint16_t *)&inputs[index].queue.used.index != inputs[index].queue.taken) return true;
  return false;
}
