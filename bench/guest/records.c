// Strings and structures, as system programs use them: numbers are spelt, names compared and copied, records found in
// chains, copied whole and changed by what kind they are.
#include "bench.h"

enum kind { LETTER, PARCEL, CRATE, PALLET, KINDS };
struct record {
  struct record *next;
  enum kind kind;
  int32_t count, weight;
  char name[24];
};

#define RECORDS 128
#define CHAINS 32
static struct record records[RECORDS];
static struct record *chains[CHAINS];
static int32_t used;
static int64_t totals[KINDS];

#define APART __attribute__((noinline))

APART static int compare(const char *x, const char *y) {
  while (*x && *x == *y) x++, y++;
  return (uint8_t)*x - (uint8_t)*y;
}

APART static char *copy(char *to, const char *from) {
  while ((*to = *from++)) to++;
  return to;
}

APART static char *spell(char *to, uint32_t number) {
  char digits[12];
  int count = 0;
  do digits[count++] = (char)('0' + number % 10);
  while (number /= 10);
  while (count > 0) *to++ = digits[--count];
  *to = 0;
  return to;
}

APART static uint32_t chain_of(const char *name) {
  uint32_t sum = 5381;
  for (; *name; name++) sum = sum * 33 + (uint8_t)*name;
  return sum % CHAINS;
}

APART static struct record *find(const char *name) {
  struct record *at = chains[chain_of(name)];
  while (at && compare(at->name, name) != 0) at = at->next;
  return at;
}

APART static struct record *enter(const struct record *like) {
  if (used == RECORDS) {
    used = 0;
    for (int i = 0; i < CHAINS; i++) chains[i] = 0;
  }
  struct record *made = &records[used++], **chain = &chains[chain_of(like->name)];
  *made = *like;
  made->next = *chain;
  *chain = made;
  return made;
}

APART static int32_t rate(enum kind kind, int32_t weight) {
  switch (kind) {
    case LETTER: return weight > 50 ? 3 : 1;
    case PARCEL: return weight / 4 + 2;
    case CRATE: return weight / 3;
    case PALLET: return weight >> 1;
    default: return 0;
  }
}

APART static void move(struct record *record, const struct record *from) {
  record->count += from->count;
  record->weight = (record->weight * 3 + from->weight) >> 2;
  if (record->weight > 90 && record->kind != PALLET) record->kind = (enum kind)(record->kind + 1);
  totals[record->kind] += rate(record->kind, record->weight);
}

uint64_t workload(void) {
  static const char *const words[] = {"letter to number ", "parcel for ", "a crate, lot ", "pallet "};
  uint64_t state = 4711, sum = 0;
  for (uint64_t round = 0; round < SCALED(1000000); round++) {
    uint64_t random = next_random(&state);
    struct record wanted = {.kind = (enum kind)(random & 3), .count = 1, .weight = (int32_t)(random >> 8 & 127)};
    spell(copy(wanted.name, words[wanted.kind]), (uint32_t)(random >> 20 & 63));
    struct record *found = find(wanted.name);
    if (!found) found = enter(&wanted);
    move(found, &wanted);
    sum = sum * 31 + (uint64_t)found->count + (uint8_t)found->name[5];
  }
  for (int i = 0; i < KINDS; i++) sum = sum * 31 + (uint64_t)totals[i];
  return sum;
}
