# RAM is zero at start on both machines, so .bss needs no clearing. With SV39 the workload runs in S-mode behind page
# tables, otherwise in M-mode.
  .section .text.start
  .globl _start
_start:
  li t0, 0x6000            # mstatus.FS = Dirty
  csrs mstatus, t0
  csrr a0, mhartid
  slli t1, a0, 13          # 8 KiB of stack for each of up to eight harts
  la sp, __stack_top
  sub sp, sp, t1
  bnez a0, 2f
#ifdef SV39
  call page_tables         # gives the value of satp
  csrw satp, a0
  sfence.vma
  li t0, -1                # PMP: S-mode may do everything
  csrw pmpaddr0, t0
  li t0, 0x1f
  csrw pmpcfg0, t0
  li t0, 7                 # and read the counters
  csrw mcounteren, t0
  li t0, 0x1800            # mstatus.MPP = S
  csrc mstatus, t0
  li t0, 0x0800
  csrs mstatus, t0
  la t0, 1f
  csrw mepc, t0
  mret
1:
#endif
  call bench_main
1: wfi
  j 1b
2: call other_hart
  j 1b
