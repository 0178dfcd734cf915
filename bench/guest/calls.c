// Calls and returns: naive Fibonacci, whose recursion the compiler is kept from unrolling.
#include "bench.h"

__attribute__((noinline, optimize("no-optimize-sibling-calls", "no-inline"))) static uint64_t fib(uint64_t n) {
  return n < 2 ? n : fib(n - 1) + fib(n - 2);
}

uint64_t workload(void) {
  uint64_t sum = 0;
  for (uint64_t round = 0; round < SCALED(5); round++) sum = sum * 31 + fib(31);
  return sum;
}
