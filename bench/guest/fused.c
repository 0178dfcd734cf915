// Double-precision floating point by fused multiply-add: matrix products, and polynomials by Horner's rule.
#include "bench.h"

#define N 96
static double a[N][N], b[N][N], c[N][N];

static double polynomial(double x) {
  static const double terms[] = {1.0, -0.5, 0.25, -0.125, 0.0625, -0.03125, 0.015625, -0.0078125};
  double value = 0;
  for (int i = 0; i < 8; i++) value = __builtin_fma(value, x, terms[i]);
  return value;
}

uint64_t workload(void) {
  for (int i = 0; i < N; i++) {
    for (int j = 0; j < N; j++) {
      a[i][j] = (i * 7 + j * 3) % 17 / 16.0;
      b[i][j] = (i * 5 + j * 11) % 19 / 18.0;
    }
  }
  for (uint64_t round = 0; round < SCALED(48); round++) {
    for (int i = 0; i < N; i++) {
      for (int j = 0; j < N; j++) {
        double sum = 0;
        for (int k = 0; k < N; k++) sum = __builtin_fma(a[i][k], b[k][j], sum);
        c[i][j] = sum;
      }
      for (int j = 0; j < N; j++) a[i][j] = polynomial(c[i][j] / 64);
    }
  }
  uint64_t bits = 0;
  for (int i = 0; i < N; i++) {
    union { double number; uint64_t bits; } u = { .number = c[i][(i * 31) % N] };
    bits = bits * 31 + u.bits;
  }
  return bits;
}
