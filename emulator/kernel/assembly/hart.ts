/** Base of this instance's hart in the shared memory, in bytes; the offsets are in hart_layout.ts. */
// @ts-ignore: decorators on declarations exist in AssemblyScript only
@external("env", "HART")
export declare const HART: u32;
