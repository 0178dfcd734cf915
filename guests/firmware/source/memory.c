// The compiler calls these two by itself, to clear and to copy structures.
#include "firmware.h"

void *memset(void *target, int value, size_t length) {
  volatile uint8_t *at = target;
  while (length-- > 0) *at++ = (uint8_t)value;
  return target;
}

void *memcpy(void *restrict target, const void *restrict source, size_t length) {
  volatile uint8_t *at = target;
  for (const uint8_t *from = source; length-- > 0;) *at++ = *from++;
  return target;
}
