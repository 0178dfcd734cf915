// Calls and returns: naive Fibonacci, whose recursion the compiler is kept from unrolling.
#include "bench.h"

__attribute__((noinline, optimize("no-optimize-sibling-calls", "no-inline"))) static uint64_t fib(uint64_t n) {
  return n < 2 ? n : fib(n - 1) + fib(n - 2);
}

uint64_t workload(void) { return fib(32); }
