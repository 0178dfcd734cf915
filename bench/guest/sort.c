// Sort as libraries offer it: of elements of any size, by a function of the caller's. Quicksort, with an insertion sort
// for short parts; the elements are pseudo-random 64-bit numbers.
#include "bench.h"

#define COUNT 100000
static uint64_t numbers[COUNT];

typedef int compare_function(const void *, const void *);

static void swap(char *a, char *b, uint64_t size) {
  if (size % 8 == 0) {
    uint64_t *x = (uint64_t *)(void *)a, *y = (uint64_t *)(void *)b;
    for (uint64_t i = size / 8; i > 0; i--) {
      uint64_t held = *x;
      *x++ = *y;
      *y++ = held;
    }
    return;
  }
  for (; size > 0; size--) {
    char held = *a;
    *a++ = *b;
    *b++ = held;
  }
}

static char *middle_of(char *a, char *b, char *c, compare_function *compare) {
  if (compare(a, b) < 0) return compare(b, c) < 0 ? b : compare(a, c) < 0 ? c : a;
  return compare(b, c) > 0 ? b : compare(a, c) < 0 ? a : c;
}

__attribute__((noipa)) static void sort(char *base, uint64_t count, uint64_t size, compare_function *compare) {
  while (count > 8) {
    char *last = base + (count - 1) * size;
    swap(base, middle_of(base, base + count / 2 * size, last, compare), size);
    char *low = base, *high = last + size;
    for (;;) {
      do low += size;
      while (low < last && compare(low, base) < 0);
      do high -= size;
      while (compare(high, base) > 0);
      if (low >= high) break;
      swap(low, high, size);
    }
    swap(base, high, size);
    uint64_t before = (uint64_t)(high - base) / size, behind = count - before - 1;
    if (before < behind) {
      sort(base, before, size, compare);
      base = high + size;
      count = behind;
    } else {
      sort(high + size, behind, size, compare);
      count = before;
    }
  }
  for (char *at = base + size; at < base + count * size; at += size) {
    for (char *to = at; to > base && compare(to - size, to) > 0; to -= size) swap(to, to - size, size);
  }
}

__attribute__((noipa)) static int by_value(const void *a, const void *b) {
  uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
  return (x > y) - (x < y);
}

uint64_t workload(void) {
  uint64_t state = 7, sum = 0;
  for (uint64_t round = 0; round < SCALED(8); round++) {
    for (uint32_t i = 0; i < COUNT; i++) numbers[i] = next_random(&state);
    sort((char *)numbers, COUNT, sizeof *numbers, by_value);
    for (uint32_t i = 1; i < COUNT; i++) {
      if (numbers[i - 1] > numbers[i]) return 0;
      sum += numbers[i] * i;
    }
  }
  return sum;
}
