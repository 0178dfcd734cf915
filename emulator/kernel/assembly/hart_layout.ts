// Where a hart keeps what, as byte offsets from its HART base in the shared memory.
// Read by AssemblyScript (the kernel) and by TypeScript (interpreter generator, state, tests): plain constants only.

/** x0..x31, 8 bytes each; x0 is never written */
export const HART_X = 0x000;
/** Where writes to x0 go */
export const HART_X_DISCARD = 0x100;
/** f0..f31, 8 bytes each, singles NaN-boxed */
export const HART_F = 0x108;
/** u32: accrued exceptions NX=1 UF=2 OF=4 DZ=8 NV=16 */
export const HART_FFLAGS = 0x208;
/** u32: dynamic rounding mode 0..7 */
export const HART_FRM = 0x20c;
