// The hart's kernel: what is too long for a row of the instruction table. One instance a hart.
export { atomicAddress, loadSlow, peekAddress, storeSlow } from './access';
export { updateSupervisorTimer } from './csr';
export { decodeSlot, fetchSlow } from './decode';
export { updatePmp } from './pmp';
export * from './softfloat/mod';
export { beginFloat, illegalHere, illegalInstruction, interruptHart, pollHart, refreshDerived, refuel, system, systemWord } from './system';
export { flushAll, flushInstructions, updateModes } from './tlb';
export { codePage, entryAt, findEntry, noteEntryPage, validateCode } from './translation';
