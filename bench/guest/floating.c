// Double-precision floating point: matrix products and a division in each row.
#include "bench.h"

#define N 96
static double a[N][N], b[N][N], c[N][N];

uint64_t workload(void) {
  for (int i = 0; i < N; i++) {
    for (int j = 0; j < N; j++) {
      a[i][j] = (i * 7 + j * 3) % 17 / 16.0;
      b[i][j] = (i * 5 + j * 11) % 19 / 18.0;
    }
  }
  for (uint64_t round = 0; round < SCALED(48); round++) {
    for (int i = 0; i < N; i++) {
      double largest = 1;
      for (int j = 0; j < N; j++) {
        double sum = 0;
        for (int k = 0; k < N; k++) sum += a[i][k] * b[k][j];
        c[i][j] = sum;
        if (sum > largest) largest = sum;
      }
      for (int j = 0; j < N; j++) a[i][j] = c[i][j] / largest;
    }
  }
  uint64_t bits = 0;
  for (int i = 0; i < N; i++) {
    union { double number; uint64_t bits; } u = { .number = c[i][(i * 31) % N] };
    bits = bits * 31 + u.bits;
  }
  return bits;
}
