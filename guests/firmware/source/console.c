// ns16550a: output waits for the transmitter, input comes by interrupt into a ring.
#include "firmware.h"

#define RING 1024u
static volatile uint32_t head, tail;
static volatile char ring[RING];

void console_init(void) {
  write8(UART_BASE + 3, 0x03); // LCR: 8 data bits, DLAB off
  write8(UART_BASE + 2, 0x07); // FCR: FIFOs on and cleared
  write8(UART_BASE + 4, 0x0b); // MCR: DTR, RTS, OUT2
  write8(UART_BASE + 1, 0x01); // IER: received data
}

void put_char(char c) {
  if (c == '\n') put_char('\r');
  while ((read8(UART_BASE + 5) & 0x20) == 0) {
  }
  write8(UART_BASE, (uint8_t)c);
}

void console_interrupt(void) {
  while (read8(UART_BASE + 5) & 0x01) {
    char c = (char)read8(UART_BASE);
    if (head - tail < RING) {
      ring[head % RING] = c;
      head++;
    }
  }
}

bool console_pending(void) { return head != tail; }

int console_get(void) {
  if (head == tail) return -1;
  char c = ring[tail % RING];
  tail++;
  return (uint8_t)c;
}

static void print_number(uint64_t value, unsigned base, int width) {
  char digits[20];
  int count = 0;
  do {
    digits[count++] = "0123456789abcdef"[value % base];
    value /= base;
  } while (value != 0);
  while (width-- > count) put_char('0');
  while (count > 0) put_char(digits[--count]);
}

void print(const char *format, ...) {
  va_list list;
  va_start(list, format);
  for (; *format != 0; format++) {
    if (*format != '%') {
      put_char(*format);
      continue;
    }
    format++;
    if (*format == 's') {
      for (const char *text = va_arg(list, const char *); *text != 0; text++) put_char(*text);
    } else if (*format == 'c') {
      put_char((char)va_arg(list, int));
    } else if (*format == 'd') {
      int64_t value = va_arg(list, int64_t);
      if (value < 0) put_char('-');
      print_number(value < 0 ? -(uint64_t)value : (uint64_t)value, 10, 0);
    } else if (*format == 'u') {
      print_number(va_arg(list, uint64_t), 10, 0);
    } else if (*format == 'x') {
      print_number(va_arg(list, uint64_t), 16, 0);
    } else if (*format == 'w') {
      print_number(va_arg(list, uint64_t), 16, 16);
    } else {
      put_char(*format);
    }
  }
  va_end(list);
}
