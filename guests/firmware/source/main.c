// The firmware's main loop: one hart, one line of command at a time, asleep in WFI when there is nothing to do.
#include "virtio.h"

volatile uint64_t timer_ticks;
static uint64_t ram_bytes;
static uint64_t last_time, time_bad;

_Noreturn void power_off(uint32_t code) {
  // SiFive test device: 0x5555 passes, 0x3333 fails with the upper half as exit status.
  write32(TEST_BASE, code == 0 ? 0x5555 : (code & 0xffff) << 16 | 0x3333);
  for (;;) __asm__ volatile("wfi");
}

static void arm_timer(void) {
  // Idle, ten looks a second are enough for the counter and the moving bar, and cost the host next to nothing.
  uint64_t period = counter_rate() != 0 || disk_rate() != 0 ? TICKS_PER_SECOND / 100 : TICKS_PER_SECOND / 10;
  write64(CLINT_BASE + 0x4000, now() + period);
}

static void external_interrupt(void) {
  for (uint32_t source; (source = read32(PLIC_BASE + 0x200004)) != 0; write32(PLIC_BASE + 0x200004, source)) {
    if (source == UART_IRQ) console_interrupt();
    else virtio_interrupt(source);
  }
}

__attribute__((interrupt("machine"), aligned(4))) void trap_handler(void) {
  uint64_t cause, pc, value;
  __asm__ volatile("csrr %0, mcause" : "=r"(cause));
  if (cause == (1ul << 63 | 7)) {
    timer_ticks++;
    arm_timer();
  } else if (cause == (1ul << 63 | 11)) {
    external_interrupt();
  } else {
    __asm__ volatile("csrr %0, mepc" : "=r"(pc));
    __asm__ volatile("csrr %0, mtval" : "=r"(value));
    print("\ntrap: mcause=%x mepc=%x mtval=%x\n", cause, pc, value);
    power_off(0xee);
  }
}

static void interrupts_take(void) {
  interrupts_on(); // what is pending is taken here
  interrupts_off();
}

void sleep_and_take(void) {
  __asm__ volatile("wfi"); // wakes for pending interrupts although they are off
  interrupts_take();
}

static void interrupts_init(void) {
  uint64_t sources = virtio_sources() | 1ul << UART_IRQ;
  for (uint32_t source = 1; source < 64; source++)
    if (sources >> source & 1) write32(PLIC_BASE + 4 * source, 1); // priority 1
  write32(PLIC_BASE + 0x2000, (uint32_t)sources); // context 0: hart 0, M-mode
  write32(PLIC_BASE + 0x2004, (uint32_t)(sources >> 32));
  write32(PLIC_BASE + 0x200000, 0);
  arm_timer();
  __asm__ volatile("csrw mie, %0" ::"r"(1ul << 7 | 1ul << 11));
}

/** Takes a word off the line; the line is consumed */
static char *next_word(char **line) {
  while (**line == ' ') (*line)++;
  char *word = *line;
  while (**line != 0 && **line != ' ') (*line)++;
  if (**line != 0) *(*line)++ = 0;
  return word;
}

bool same(const char *a, const char *b) {
  while (*a != 0 && *a == *b) a++, b++;
  return *a == *b;
}

static bool number(const char *text, uint64_t *value) {
  if (*text == 0) return false;
  for (*value = 0; *text != 0; text++) {
    if (*text < '0' || *text > '9' || *value > 1ul << 48) return false;
    *value = *value * 10 + (uint64_t)(*text - '0');
  }
  return true;
}

static void show_info(void) {
  uint64_t isa;
  __asm__ volatile("csrr %0, misa" : "=r"(isa));
  print("info: ram=%u MiB harts=%u misa=%x time=%u ms time-bad=%u keys=%u inputs=%u display=", ram_bytes >> 20,
        (uint64_t)hart_count, isa, now() / (TICKS_PER_SECOND / 1000), time_bad, input_keys(), (uint64_t)input_count());
  if (display_present()) display_print_size();
  else print("none");
  print("\n");
}

static void run_line(char *line) {
  uint64_t value = 0;
  char *word = next_word(&line);
  char *argument = next_word(&line);
  if (*word == 0) return;
  if (same(word, "help")) {
    print("commands: help info count [STEPS] dirty MIB_PER_SECOND stop checksum spoil [PAGE] draw disk poweroff [CODE] reboot\n");
  } else if (same(word, "info")) {
    show_info();
  } else if (same(word, "count")) {
    if (number(argument, &value)) counter_run(value);
    counter_print();
  } else if (same(word, "dirty")) {
    if (!number(argument, &value) || value > 100000) {
      print("error: dirty needs a rate in MiB/s\n");
    } else {
      counter_set_rate(value);
      arm_timer();
      print("dirty: %u MiB/s\n", value);
    }
  } else if (same(word, "stop")) {
    counter_set_rate(0);
    disk_set_rate(0);
    display_stop();
    print("stop: done\n");
  } else if (same(word, "spoil")) {
    if (!number(argument, &value)) value = 0;
    counter_spoil(value);
  } else if (same(word, "draw")) {
    if (display_draw()) print("draw: done\n");
    else print("error: no display\n");
  } else if (same(word, "disk")) {
    bool has_number = number(next_word(&line), &value);
    disk_command(argument, has_number, value);
    arm_timer();
  } else if (same(word, "checksum")) {
    counter_check();
  } else if (same(word, "poweroff")) {
    if (!number(argument, &value)) value = 0;
    print("poweroff: %u\n", value);
    power_off((uint32_t)value);
  } else if (same(word, "reboot")) {
    print("reboot\n");
    write32(TEST_BASE, 0x7777);
  } else {
    print("error: unknown command: %s (try help)\n", word);
  }
}

static void take_character(int c) {
  static char line[128];
  static uint32_t length;
  if (c == '\r' || c == '\n') {
    print("\n");
    line[length] = 0;
    length = 0;
    run_line(line);
    print("> ");
  } else if ((c == 0x7f || c == 0x08) && length > 0) {
    length--;
    print("\b \b");
  } else if (c >= ' ' && c < 0x7f && length < sizeof line - 1) {
    line[length++] = (char)c;
    put_char((char)c);
  }
}

_Noreturn void firmware_main(const void *tree) {
  console_init();
  ram_bytes = fdt_ram_bytes(tree);
  if (ram_bytes == 0) ram_bytes = 32ul << 20;
  print("\ncaisson firmware: %u MiB of RAM\n", ram_bytes >> 20);
  counter_init(ram_bytes);
  virtio_probe();
  interrupts_off();
  interrupts_init();
  disk_init();
  display_init();
  input_init();
  display_draw();
  show_info();
  print("ready\n> ");

  uint64_t seen_ticks = 0;
  for (;;) {
    // Interrupts are taken only here and in sleep_and_take: what was checked cannot change before the sleep.
    if (!console_pending() && !input_pending() && seen_ticks == timer_ticks) sleep_and_take();
    else interrupts_take();
    uint64_t time = now();
    if (time < last_time) time_bad++;
    last_time = time;
    for (int c; (c = console_get()) >= 0;) take_character(c);
    if (seen_ticks != timer_ticks) {
      seen_ticks = timer_ticks;
      counter_step();
      counter_catch_up();
      disk_catch_up();
      display_tick();
    }
    input_poll();
  }
}
