// What the parts of the firmware share: types, the memory map of QEMU's `-M virt`, console output.
#pragma once
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define UART_BASE 0x10000000ul
#define TEST_BASE 0x00100000ul
#define CLINT_BASE 0x02000000ul
#define PLIC_BASE 0x0c000000ul
#define VIRTIO_BASE 0x10001000ul
#define VIRTIO_STRIDE 0x1000ul
#define VIRTIO_SLOTS 8
#define UART_IRQ 10
#define VIRTIO_IRQ 1
#define RAM_BASE 0x80000000ul

// Frame buffer, then the pages of the counter; the top 4 MiB stay free for the device tree.
#define FRAME_BASE 0x80400000ul
#define FRAME_MAX_BYTES 0x00800000ul
#define COUNTER_BASE 0x81000000ul
#define RAM_TOP_RESERVE 0x00400000ul

#define TICKS_PER_SECOND 10000000ul

static inline uint8_t read8(uintptr_t address) { return *(volatile uint8_t *)address; }
static inline uint32_t read32(uintptr_t address) { return *(volatile uint32_t *)address; }
static inline uint64_t read64(uintptr_t address) { return *(volatile uint64_t *)address; }
static inline void write8(uintptr_t address, uint8_t value) { *(volatile uint8_t *)address = value; }
static inline void write32(uintptr_t address, uint32_t value) { *(volatile uint32_t *)address = value; }
static inline void write64(uintptr_t address, uint64_t value) { *(volatile uint64_t *)address = value; }
static inline void fence(void) { __asm__ volatile("fence" ::: "memory"); }
static inline void interrupts_off(void) { __asm__ volatile("csrci mstatus, 8" ::: "memory"); }
static inline void interrupts_on(void) { __asm__ volatile("csrsi mstatus, 8" ::: "memory"); }
static inline uint64_t now(void) { return read64(CLINT_BASE + 0xbff8); }

// console.c
void console_init(void);
/** %s %c %d (int64) %u (uint64) %x (uint64, hexadecimal) %w (uint64, 16 digits) */
void print(const char *format, ...);
void put_char(char c);
/** Called by the trap handler: takes what the UART has */
void console_interrupt(void);
/** -1: nothing there */
int console_get(void);
bool console_pending(void);

// fdt.c
/** Bytes of RAM at RAM_BASE; 0 when the device tree does not say */
uint64_t fdt_ram_bytes(const void *tree);

// counter.c
void counter_init(uint64_t ram_bytes);
/** One page further: three stores that `checksum` can find again */
void counter_step(void);
void counter_run(uint64_t steps);
/** MiB a second; 0 stops */
void counter_set_rate(uint64_t mib_per_second);
uint64_t counter_rate(void);
/** Steps that are due by the rate; true when there is more to do now */
void counter_catch_up(void);
void counter_print(void);
/** Compares every word of every page; true when nothing was lost */
bool counter_check(void);

uint64_t counter_generation(void);
/** Loses a store on purpose: shows that `checksum` can say BAD */
void counter_spoil(uint64_t page);

// disk.c
void disk_init(void);
void disk_set_rate(uint64_t writes_per_second);
void disk_command(const char *verb, bool has_number, uint64_t value);
/** Writes a second that are wanted */
uint64_t disk_rate(void);
void disk_catch_up(void);

// display.c
void display_init(void);
bool display_present(void);
/** Draws the test card and lets it move; false without a display */
bool display_draw(void);
bool display_moving(void);
void display_stop(void);
void display_tick(void);
void display_type(char c);
void display_print_size(void);

// input.c
void input_init(void);
void input_poll(void);
bool input_pending(void);
uint64_t input_keys(void);
unsigned input_count(void);

// main.c
bool same(const char *a, const char *b);
extern uint32_t hart_count;
extern volatile uint64_t timer_ticks;
/** Sleeps until an interrupt has been taken; call with work checked and interrupts off */
void sleep_and_take(void);
_Noreturn void power_off(uint32_t code);
