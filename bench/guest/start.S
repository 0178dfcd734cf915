# RAM is zero at start on both machines, so .bss needs no clearing.
  .section .text.start
  .globl _start
_start:
  li t0, 0x6000            # mstatus.FS = Dirty
  csrs mstatus, t0
  la sp, __stack_top
  call bench_main
1: wfi
  j 1b
