// The proof that no store was lost. A generation counter n runs 1, 2, 3 …; step n writes three words of one page:
//   word 0      n                 the page's last visitor
//   word 511    ~n                a page copied half-way shows two visitors
//   word 1 + (round mod 510)      mix(n), so that every word of the page carries a value in the end
// Pages are visited in a scattered order that is a permutation in each round. What memory must hold is therefore a
// pure function of n alone, and `checksum` compares every word of every page with it: a lost, stale, torn or
// reordered page shows. Each step also checks its page's previous visitor, and a running sum of all word 0 is kept.
#include "firmware.h"

#define PAGE_BYTES 4096ul
#define WORDS 512u
#define SLOTS 510u
#define SCATTER 0x9e3779b1ul // odd: a permutation of any power of two

static uint64_t pages;      // a power of two
static uint64_t generation; // the last n
static uint64_t sum;        // of word 0 of all pages
static uint64_t online_bad; // pages whose previous visitor was wrong
static uint64_t rate;       // MiB/s
static uint64_t paid_until; // mtime up to which the rate has been served

static uint64_t mix(uint64_t n) {
  n *= 0x9e3779b97f4a7c15ul;
  return n ^ n >> 29;
}

static volatile uint64_t *page_of(uint64_t index) {
  return (volatile uint64_t *)(COUNTER_BASE + (index * SCATTER & (pages - 1)) * PAGE_BYTES);
}

void counter_init(uint64_t ram_bytes) {
  uint64_t top = RAM_BASE + ram_bytes - RAM_TOP_RESERVE;
  uint64_t limit = top > COUNTER_BASE ? (top - COUNTER_BASE) / PAGE_BYTES : 0;
  pages = 1;
  while (pages * 2 <= limit && pages < 65536) pages *= 2;
  generation = sum = online_bad = rate = 0;
  // Fresh RAM is zero, but a reboot leaves the old pages: clear only what is not.
  for (volatile uint64_t *word = (volatile uint64_t *)COUNTER_BASE; word < (volatile uint64_t *)COUNTER_BASE + pages * WORDS;
       word++)
    if (*word != 0) *word = 0;
}

void counter_step(void) {
  uint64_t n = ++generation;
  uint64_t round = (n - 1) / pages;
  volatile uint64_t *page = page_of(n - 1);
  uint64_t previous = page[0];
  if (previous != (n > pages ? n - pages : 0)) online_bad++;
  page[0] = n;
  page[1 + round % SLOTS] = mix(n);
  page[WORDS - 1] = ~n;
  sum += n - previous;
}

void counter_run(uint64_t steps) {
  while (steps-- > 0) counter_step();
}

void counter_set_rate(uint64_t mib_per_second) {
  rate = mib_per_second;
  paid_until = now();
}

uint64_t counter_rate(void) { return rate; }

void counter_catch_up(void) {
  if (rate == 0) return;
  uint64_t time = now();
  // A machine that cannot keep up, or stood still, does not owe more than 50 ms.
  if (time - paid_until > TICKS_PER_SECOND / 20) paid_until = time - TICKS_PER_SECOND / 20;
  uint64_t steps = (time - paid_until) * rate * 256 / TICKS_PER_SECOND;
  paid_until += steps * TICKS_PER_SECOND / (rate * 256);
  counter_run(steps);
}

uint64_t counter_generation(void) { return generation; }

void counter_print(void) {
  print("count: generation=%u pages=%u rate=%u sum=%w online-bad=%u ticks=%u\n", generation, pages, rate, sum, online_bad,
        timer_ticks);
}

/** What a page's word must hold when step `last` was the page's last visit (0: never visited) */
static uint64_t expected_word(uint64_t last, unsigned word) {
  if (last == 0) return 0;
  if (word == 0) return last;
  if (word == WORDS - 1) return ~last;
  uint64_t round = (last - 1) / pages;
  uint64_t back = (round % SLOTS + SLOTS - (word - 1)) % SLOTS; // rounds since that slot's turn
  return back > round ? 0 : mix(last - back * pages);
}

bool counter_check(void) {
  uint64_t bad_words = 0, bad_pages = 0, found_sum = 0, first_bad = 0;
  for (uint64_t index = 0; index < pages; index++) {
    volatile uint64_t *page = page_of(index);
    uint64_t last = generation <= index ? 0 : 1 + index + (generation - 1 - index) / pages * pages;
    uint64_t before = bad_words;
    for (unsigned word = 0; word < WORDS; word++) {
      if (page[word] == expected_word(last, word)) continue;
      if (bad_words++ == 0) first_bad = (uint64_t)&page[word];
    }
    if (bad_words != before) bad_pages++;
    found_sum += page[0];
  }
  bool ok = bad_words == 0 && online_bad == 0 && found_sum == sum;
  print("checksum: %s generation=%u pages=%u bad-pages=%u bad-words=%u online-bad=%u sum=%w", ok ? "OK" : "BAD", generation,
        pages, bad_pages, bad_words, online_bad, found_sum);
  if (found_sum != sum) print(" running-sum=%w", sum);
  if (bad_words != 0) print(" first-bad=%x", first_bad);
  print("\n");
  return ok;
}

void counter_spoil(uint64_t index) {
  volatile uint64_t *page = page_of(index % pages);
  page[WORDS - 1] ^= 1;
  print("spoil: one bit of page %u\n", index % pages);
}
