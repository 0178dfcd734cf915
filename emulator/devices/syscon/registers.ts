// The SiFive test device ("sifive,test0"): one register.

/** Status in bits 15:0, exit code in bits 31:16 */
export const TEST_FINISHER = 0x0;

export const FINISHER_FAIL = 0x3333;
export const FINISHER_PASS = 0x5555;
export const FINISHER_RESET = 0x7777;
