// A bytecode interpreter around one switch: the guest's indirect jump at every operation. Its program sieves primes,
// then follows a Collatz sequence.
#include "bench.h"

enum operation { STOP, PUSH, LOAD, STORE, PEEK, POKE, ADD, MULTIPLY, HALVE, AND, LESS, JUMP, ZERO };
struct code {
  uint8_t operation;
  int16_t operand;
};

#define CELLS 4096
static int64_t cells[CELLS];
enum { LIMIT, I, J, PRIMES, N, STEPS, SEED, VARIABLES };
static int64_t variables[VARIABLES];

static const struct code program[] = {
  [0] = {PUSH, 2}, {STORE, I},
  [2] = {LOAD, I}, {LOAD, LIMIT}, {LESS, 0}, {ZERO, 33},
  [6] = {LOAD, I}, {PEEK, 0}, {ZERO, 10}, {JUMP, 28},
  [10] = {LOAD, PRIMES}, {PUSH, 1}, {ADD, 0}, {STORE, PRIMES}, {LOAD, I}, {STORE, J},
  [16] = {LOAD, J}, {LOAD, I}, {ADD, 0}, {STORE, J},
  [20] = {LOAD, J}, {LOAD, LIMIT}, {LESS, 0}, {ZERO, 28},
  [24] = {PUSH, 1}, {LOAD, J}, {POKE, 0}, {JUMP, 16},
  [28] = {LOAD, I}, {PUSH, 1}, {ADD, 0}, {STORE, I}, {JUMP, 2},
  [33] = {LOAD, SEED}, {STORE, N},
  [35] = {PUSH, 1}, {LOAD, N}, {LESS, 0}, {ZERO, 57},
  [39] = {LOAD, STEPS}, {PUSH, 1}, {ADD, 0}, {STORE, STEPS},
  [43] = {LOAD, N}, {PUSH, 1}, {AND, 0}, {ZERO, 53},
  [47] = {LOAD, N}, {PUSH, 3}, {MULTIPLY, 0}, {PUSH, 1}, {ADD, 0}, {JUMP, 55},
  [53] = {LOAD, N}, {HALVE, 0},
  [55] = {STORE, N}, {JUMP, 35},
  [57] = {STOP, 0},
};

__attribute__((noinline)) static void run(const struct code *code) {
  int64_t stack[16], *top = stack;
  for (const struct code *at = code;; at++) {
    switch ((enum operation)at->operation) {
      case STOP: return;
      case PUSH: *++top = at->operand; break;
      case LOAD: *++top = variables[at->operand]; break;
      case STORE: variables[at->operand] = *top--; break;
      case PEEK: *top = cells[*top % CELLS]; break;
      case POKE: cells[top[0] % CELLS] = top[-1]; top -= 2; break;
      case ADD: top--; top[0] += top[1]; break;
      case MULTIPLY: top--; top[0] *= top[1]; break;
      case HALVE: *top >>= 1; break;
      case AND: top--; top[0] &= top[1]; break;
      case LESS: top--; top[0] = top[0] < top[1]; break;
      case JUMP: at = code + at->operand - 1; break;
      case ZERO: if (*top-- == 0) at = code + at->operand - 1; break;
    }
  }
}

uint64_t workload(void) {
  uint64_t sum = 0;
  for (uint64_t round = 0; round < SCALED(110); round++) {
    for (int i = 0; i < CELLS; i++) cells[i] = 0;
    for (int i = 0; i < VARIABLES; i++) variables[i] = 0;
    variables[LIMIT] = CELLS - (int64_t)(round & 63);
    variables[SEED] = 27 + (int64_t)round;
    run(program);
    sum = sum * 31 + (uint64_t)variables[PRIMES] * 1000 + (uint64_t)variables[STEPS];
  }
  return sum;
}
