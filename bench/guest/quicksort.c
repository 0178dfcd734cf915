// Quicksort with an insertion sort at the end, of pseudo-random 64-bit numbers.
#include "bench.h"

#define COUNT 400000
static uint64_t numbers[COUNT];

static void sort(uint64_t *low, uint64_t *high) {
  while (high - low > 16) {
    uint64_t pivot = low[(high - low) / 2], *i = low, *j = high;
    for (;;) {
      while (*i < pivot) i++;
      while (*j > pivot) j--;
      if (i >= j) break;
      uint64_t held = *i;
      *i++ = *j;
      *j-- = held;
    }
    if (j - low < high - j) {
      sort(low, j);
      low = j + 1;
    } else {
      sort(j + 1, high);
      high = j;
    }
  }
  for (uint64_t *i = low + 1; i <= high; i++) {
    uint64_t value = *i, *j = i;
    for (; j > low && j[-1] > value; j--) *j = j[-1];
    *j = value;
  }
}

uint64_t workload(void) {
  uint64_t state = 7, sum = 0;
  for (uint64_t round = 0; round < SCALED(8); round++) {
    for (uint32_t i = 0; i < COUNT; i++) numbers[i] = next_random(&state);
    sort(numbers, numbers + COUNT - 1);
    for (uint32_t i = 1; i < COUNT; i++) {
      if (numbers[i - 1] > numbers[i]) return 0;
      sum += numbers[i] * i;
    }
  }
  return sum;
}
