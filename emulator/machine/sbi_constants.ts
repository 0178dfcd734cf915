// RISC-V Supervisor Binary Interface 2.0: numbers.

/** Chapter 3, table "Standard SBI errors" */
export const SBI = Object.freeze({
  SUCCESS: 0,
  ERR_FAILED: -1,
  ERR_NOT_SUPPORTED: -2,
  ERR_INVALID_PARAM: -3,
  ERR_DENIED: -4,
  ERR_INVALID_ADDRESS: -5,
  ERR_ALREADY_AVAILABLE: -6,
});

/** Major 2, minor 0 (chapter 4.1) */
export const SBI_SPEC_VERSION = 0x0200_0000n;
/** Not a registered implementation: the list of chapter 4.9 has no number for us */
export const SBI_IMPLEMENTATION_ID = 0x4341_4953n;
export const SBI_IMPLEMENTATION_VERSION = 1n;

export const EXTENSION = Object.freeze({
  BASE: 0x10n,
  TIME: 0x5449_4d45n,
  IPI: 0x73_5049n,
  RFENCE: 0x5246_4e43n,
  HSM: 0x48_534dn,
  SRST: 0x5352_5354n,
  DBCN: 0x4442_434en,
  // Legacy, chapter 5: one function each
  SET_TIMER: 0n,
  CONSOLE_PUTCHAR: 1n,
  CONSOLE_GETCHAR: 2n,
  CLEAR_IPI: 3n,
  SEND_IPI: 4n,
  REMOTE_FENCE_I: 5n,
  REMOTE_SFENCE_VMA: 6n,
  REMOTE_SFENCE_VMA_ASID: 7n,
  SHUTDOWN: 8n,
});

/** Hart states (chapter 9) */
export const HART_STATE = Object.freeze({
  started: 0,
  stopped: 1,
  startPending: 2,
  stopPending: 3,
  suspended: 4,
  suspendPending: 5,
  resumePending: 6,
});
export type HartState = (typeof HART_STATE)[keyof typeof HART_STATE];

/** Suspend types (chapter 9.4) */
export const SUSPEND_RETENTIVE = 0;
export const SUSPEND_NON_RETENTIVE = 0x8000_0000;

/** Reset types and reasons (chapter 10.1); 0 is none */
export const RESET_TYPES = ['shutdown', 'cold-reboot', 'warm-reboot'] as const;
export const RESET_REASON_FAILURE = 1;
/** From here on reasons belong to implementations, vendors and platforms */
export const RESET_REASON_CUSTOM = 0xe000_0000;
