// Integer mix: a linked list that is searched, reversed and sorted, small integer matrices, a state machine over text,
// and a checksum that binds them.
#include "bench.h"

#define NODES 256
#define SIDE 24
#define TEXT 1024

struct node {
  struct node *next;
  int16_t key, tag;
};
static struct node nodes[NODES];
static int16_t a[SIDE][SIDE], b[SIDE][SIDE];
static int32_t product[SIDE][SIDE];
static char text[TEXT];

static uint16_t crc(uint16_t sum, uint32_t value, int bits) {
  for (; bits > 0; bits--, value >>= 1) sum = (uint16_t)((sum ^ value) & 1 ? sum >> 1 ^ 0xa001 : sum >> 1);
  return sum;
}

static struct node *reverse(struct node *list) {
  struct node *done = 0;
  while (list) {
    struct node *rest = list->next;
    list->next = done;
    done = list;
    list = rest;
  }
  return done;
}

static struct node *merge(struct node *x, struct node *y, int by_tag) {
  struct node head, *last = &head;
  while (x && y) {
    int first = by_tag ? x->tag <= y->tag : x->key <= y->key;
    struct node **from = first ? &x : &y;
    last->next = *from;
    last = *from;
    *from = (*from)->next;
  }
  last->next = x ? x : y;
  return head.next;
}

/** Bottom up: `bins[i]` holds a sorted run of 2^i nodes or none. */
static struct node *sort(struct node *list, int by_tag) {
  struct node *bins[16] = {0};
  while (list) {
    struct node *run = list;
    list = list->next;
    run->next = 0;
    int i = 0;
    for (; bins[i]; i++) {
      run = merge(bins[i], run, by_tag);
      bins[i] = 0;
    }
    bins[i] = run;
  }
  struct node *all = 0;
  for (int i = 0; i < 16; i++) all = merge(bins[i], all, by_tag);
  return all;
}

static uint16_t lists(uint16_t sum, int round) {
  struct node *list = nodes;
  for (int i = 0; i < NODES; i++) nodes[i].next = i + 1 < NODES ? &nodes[i + 1] : 0;
  for (int search = 0; search < 24; search++) {
    int16_t wanted = (int16_t)((search * 37 + round) & 0xff);
    struct node *at = list;
    while (at && (at->key & 0xff) != wanted) at = at->next;
    sum = crc(sum, at ? (uint32_t)at->tag : 0xffff, 8);
    list = reverse(list);
  }
  list = sort(list, 0);
  sum = crc(sum, (uint32_t)list->tag, 16);
  list = sort(list, 1);
  for (struct node *at = list; at; at = at->next) at->key = (int16_t)(at->key * 5 + round);
  return crc(sum, (uint32_t)list->key, 16);
}

static uint16_t matrices(uint16_t sum, int round) {
  for (int i = 0; i < SIDE; i++) {
    for (int j = 0; j < SIDE; j++) {
      int32_t total = 0;
      for (int k = 0; k < SIDE; k++) total += a[i][k] * b[k][j];
      product[i][j] = total;
    }
  }
  for (int i = 0; i < SIDE; i++) {
    for (int j = 0; j < SIDE; j++) {
      sum = crc(sum, (uint32_t)product[i][j] >> 4, 4);
      a[i][j] = (int16_t)((product[i][j] >> 6) + round);
    }
  }
  return sum;
}

enum state { START, SIGN, WHOLE, FRACTION, EXPONENT, POWER, BAD, STATES };

/** Counts in what states the words of the text end: whole numbers, fractions, powers, none of these. */
static uint16_t words(uint16_t sum) {
  uint32_t ends[STATES] = {0}, changes = 0;
  enum state state = START;
  for (int i = 0; i < TEXT; i++) {
    char c = text[i];
    enum state before = state;
    int digit = c >= '0' && c <= '9';
    if (c == ' ') {
      ends[state]++;
      state = START;
      continue;
    }
    switch (state) {
      case START: state = digit ? WHOLE : c == '+' || c == '-' ? SIGN : c == '.' ? FRACTION : BAD; break;
      case SIGN: state = digit ? WHOLE : c == '.' ? FRACTION : BAD; break;
      case WHOLE: if (!digit) state = c == '.' ? FRACTION : c == 'e' ? EXPONENT : BAD; break;
      case FRACTION: if (!digit) state = c == 'e' ? EXPONENT : BAD; break;
      case EXPONENT: state = digit || c == '-' || c == '+' ? POWER : BAD; break;
      case POWER: if (!digit) state = BAD; break;
      default: break;
    }
    changes += state != before;
  }
  for (int i = 0; i < STATES; i++) sum = crc(sum, ends[i], 16);
  return crc(sum, changes, 16);
}

uint64_t workload(void) {
  uint64_t state = 88172645463325252ul;
  for (int i = 0; i < NODES; i++) {
    nodes[i].key = (int16_t)next_random(&state);
    nodes[i].tag = (int16_t)i;
  }
  for (int i = 0; i < SIDE; i++) {
    for (int j = 0; j < SIDE; j++) {
      a[i][j] = (int16_t)(next_random(&state) & 0x3ff);
      b[i][j] = (int16_t)(next_random(&state) & 0x3ff);
    }
  }
  uint16_t sum = 0;
  uint64_t all = 0;
  for (uint64_t round = 0; round < SCALED(2000); round++) {
    for (int i = 0; i < TEXT; i++) text[i] = "0123456789+-.e  "[next_random(&state) & 15];
    sum = lists(sum, (int)round);
    sum = matrices(sum, (int)round);
    sum = words(sum);
    all = all * 31 + sum;
  }
  return all;
}
