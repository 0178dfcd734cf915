import { StateReader } from '../../state/read_state.ts';
import { StateError, type StateValue } from '../../state/state.ts';
import { FIFO_BYTES } from './registers.ts';

/** Host input that may wait for the guest, in `bytes`: a power of two */
export const INPUT_RING_BYTES = 4096;
/** Guest output that may wait for the host, in `bytes`: a power of two */
export const OUTPUT_RING_BYTES = 65536;

/** Index of each word of the shared state; registers take a word each */
export const WORD = Object.freeze({
  lock: 0,
  /** Counts the times that output began to wait: the host sleeps on it */
  outputNotify: 1,
  /** Counts the times that input has room again: the host sleeps on it */
  inputNotify: 2,
  ier: 3,
  lcr: 4,
  mcr: 5,
  /** Error bits of LSR only; the others follow from the FIFOs */
  lsr: 6,
  msr: 7,
  scratch: 8,
  divisor: 9,
  /** As last written, without the self-clearing bits */
  fcr: 10,
  /** 1 while "transmitter empty" waits to be told */
  thrInterrupt: 11,
  /** 1 while the output ring is full and the guest was told to wait */
  outputBlocked: 12,
  /** 1 while the host was told that input is full */
  inputBlocked: 13,
  fifoHead: 14,
  fifoCount: 15,
  // Free-running positions, modulo 2^32
  inputHead: 16,
  inputTail: 17,
  outputHead: 18,
  outputTail: 19,
  fifo: 20,
  input: 20 + FIFO_BYTES / 4,
  output: 20 + FIFO_BYTES / 4 + INPUT_RING_BYTES / 4,
  end: 20 + FIFO_BYTES / 4 + INPUT_RING_BYTES / 4 + OUTPUT_RING_BYTES / 4,
});

/** What is saved. Output that the host has not drained is the host's business, not state. */
export interface UartState {
  readonly registers: Readonly<Record<RegisterName, number>>;
  readonly fifo: Uint8Array;
  readonly input: Uint8Array;
}

const REGISTER_LIMITS = {
  ier: 0x0f,
  lcr: 0xff,
  mcr: 0x1f,
  lsr: 0x12,
  msr: 0xff,
  scratch: 0xff,
  divisor: 0xffff,
  fcr: 0xc9,
  thrInterrupt: 1,
} as const;
export type RegisterName = keyof typeof REGISTER_LIMITS;
export const REGISTER_NAMES = Object.keys(REGISTER_LIMITS) as RegisterName[];

export function encodeUartState(state: UartState): StateValue {
  return { ...state.registers, fifo: state.fifo, input: state.input };
}

/** @throws StateError */
export function decodeUartState(name: string, value: unknown, version: number): UartState {
  if (version !== 1) throw new StateError(name, `version ${version}, expected 1`);
  const reader = new StateReader(name, value);
  const registers = {} as Record<RegisterName, number>;
  for (const field of REGISTER_NAMES) registers[field] = reader.integer(field, 0, REGISTER_LIMITS[field]);
  return {
    registers,
    fifo: reader.bytes('fifo', 0, FIFO_BYTES).slice(),
    input: reader.bytes('input', 0, INPUT_RING_BYTES).slice(),
  };
}
