# Reset: QEMU's rule for -bios none is a0 = hart id, a1 = device tree, M-mode, pc = start of RAM, all harts at once.
    .section .text.start, "ax"
    .globl _start
_start:
    csrw    mie, zero
    .option push
    .option norelax
    la      gp, __global_pointer$
    .option pop
    # .bss belongs to hart 0; the count of harts lives in .data, so that no hart can lose another's increment.
    la      t0, hart_count
    li      t1, 1
    amoadd.w zero, t1, (t0)
    csrr    t0, mhartid
    bnez    t0, park

    la      sp, __stack_top
    la      t0, __bss_start
    la      t1, __bss_end
1:  sd      zero, 0(t0)
    addi    t0, t0, 8
    bltu    t0, t1, 1b
    la      t0, trap_handler
    csrw    mtvec, t0
    mv      a0, a1
    call    firmware_main
    # firmware_main does not return; park if it ever does.
park:
    wfi
    j       park

    .section .data
    .balign 4
    .globl hart_count
hart_count:
    .word   0
