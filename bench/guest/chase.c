// Pointer chase: one random cycle through 8 MiB, so that every load waits for the one before and pages change.
#include "bench.h"

#define NODES (1 << 17)
struct node {
  struct node *next;
  uint64_t padding[7];
};
static struct node nodes[NODES];
static uint32_t order[NODES];

uint64_t workload(void) {
  uint64_t state = 99, sum = 0;
  for (uint32_t i = 0; i < NODES; i++) order[i] = i;
  for (uint32_t i = NODES - 1; i > 0; i--) {
    uint32_t j = (uint32_t)(next_random(&state) % (i + 1)), held = order[i];
    order[i] = order[j];
    order[j] = held;
  }
  for (uint32_t i = 0; i < NODES; i++) nodes[order[i]].next = &nodes[order[(i + 1) % NODES]];
  struct node *at = nodes;
  for (uint64_t i = 0; i < SCALED(3000000); i++) at = at->next;
  for (uint32_t i = 0; i < 1000; i++, at = at->next) sum = sum * 31 + (uint64_t)(at - nodes);
  return sum;
}
