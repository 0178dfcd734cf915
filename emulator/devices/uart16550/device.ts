import type { StateValue } from '../../state/state.ts';
import type { AccessSize, Device, InterruptLine, MmioDevice } from '../device.ts';
import { SpinLock } from '../shared/mod.ts';
import * as reg from './registers.ts';
import {
  decodeUartState,
  encodeUartState,
  INPUT_RING_BYTES,
  OUTPUT_RING_BYTES,
  REGISTER_NAMES,
  type RegisterName,
  WORD,
} from './state.ts';

/** What 9600 baud is at the clock that QEMU announces */
const RESET_DIVISOR = 0x0c;

/**
 * The 16550A serial port of the `virt` machine. Every thread has its own object over the same shared words: harts
 * use the registers, the host's thread drains output and pushes input. Bytes take no time on the wire; while the
 * output ring has no room for a FIFO's worth, "transmitter empty" stays clear, and a guest that writes in spite of
 * that loses the byte, as on hardware.
 *
 * Input that is below the trigger level is told as a timeout at once: no guest gains from waiting four characters'
 * time.
 */
export class Uart16550 implements MmioDevice, Device {
  static readonly WORDS = WORD.end;

  readonly name = 'serial-mm';
  readonly stateName = 'uart0';
  readonly stateVersion = 1;
  readonly #words: Int32Array;
  readonly #fifo: Uint8Array;
  readonly #input: Uint8Array;
  readonly #output: Uint8Array;
  readonly #line: InterruptLine;
  readonly #lock: SpinLock;

  /** `words`: this device's own `Uart16550.WORDS` words of the shared memory; call `reset()` once */
  constructor(words: Int32Array, line: InterruptLine) {
    if (words.length < Uart16550.WORDS) throw new RangeError(`Cannot make a UART: it needs ${Uart16550.WORDS} words`);
    this.#words = words;
    const ring = (word: number, bytes: number) => new Uint8Array(words.buffer, words.byteOffset + word * 4, bytes);
    this.#fifo = ring(WORD.fifo, reg.FIFO_BYTES);
    this.#input = ring(WORD.input, INPUT_RING_BYTES);
    this.#output = ring(WORD.output, OUTPUT_RING_BYTES);
    this.#line = line;
    this.#lock = new SpinLock(words, WORD.lock);
  }

  /** The shared words, for {@link waitForWord} on `WORD.outputNotify` and `WORD.inputNotify` */
  get words(): Int32Array {
    return this.#words;
  }

  read(offset: number, _size: AccessSize): number {
    return this.#lock.run(() => this.#read(offset));
  }

  write(offset: number, _size: AccessSize, value: number): void {
    this.#lock.run(() => this.#write(offset, value & 0xff));
  }

  reset(): void {
    this.#lock.run(() => {
      for (const name of REGISTER_NAMES) this.#store(WORD[name], 0);
      this.#store(WORD.mcr, reg.MCR_OUT2);
      this.#store(WORD.msr, reg.MSR_CONNECTED);
      this.#store(WORD.divisor, RESET_DIVISOR);
      this.#clearFifo();
      this.#update();
    });
  }

  /** Takes what the guest has written since the last call; at most `maxBytes`. Host side. */
  drainOutput(maxBytes = OUTPUT_RING_BYTES): Uint8Array<ArrayBuffer> {
    return this.#lock.run(() => {
      const tail = this.#load(WORD.outputTail);
      const count = Math.min((this.#load(WORD.outputHead) - tail) >>> 0, maxBytes);
      const bytes = new Uint8Array(count);
      // The guest waits for the lock meanwhile: two copies, not a loop
      const from = tail % OUTPUT_RING_BYTES;
      const first = Math.min(count, OUTPUT_RING_BYTES - from);
      bytes.set(this.#output.subarray(from, from + first));
      bytes.set(this.#output.subarray(0, count - first), first);
      this.#store(WORD.outputTail, tail + count);
      if (this.#load(WORD.outputBlocked) === 1 && this.#transmitterReady()) {
        this.#store(WORD.outputBlocked, 0);
        this.#store(WORD.thrInterrupt, 1);
        this.#update();
      }
      return bytes;
    });
  }

  /** Offers bytes to the guest; gives how many were taken. Host side. */
  pushInput(bytes: Uint8Array): number {
    return this.#lock.run(() => {
      const head = this.#load(WORD.inputHead);
      const room = INPUT_RING_BYTES - ((head - this.#load(WORD.inputTail)) >>> 0);
      const count = Math.min(room, bytes.length);
      for (let index = 0; index < count; index++) this.#input[(head + index) % INPUT_RING_BYTES] = bytes[index]!;
      this.#store(WORD.inputHead, head + count);
      if (count < bytes.length) this.#store(WORD.inputBlocked, 1);
      this.#refill();
      this.#update();
      return count;
    });
  }

  /** What firmware outside the guest prints, between the guest's own bytes; gives how many were taken. */
  firmwareWrite(bytes: Uint8Array): number {
    return this.#lock.run(() => {
      let taken = 0;
      while (taken < bytes.length && this.#append(bytes[taken]!)) taken++;
      return taken;
    });
  }

  /** Takes input for firmware outside the guest, which a driver of the guest then does not get. */
  firmwareRead(maxBytes: number): Uint8Array<ArrayBuffer> {
    return this.#lock.run(() => {
      const bytes: number[] = [];
      while (bytes.length < maxBytes && this.#load(WORD.fifoCount) > 0) bytes.push(this.#receive());
      return Uint8Array.from(bytes);
    });
  }

  saveState(): StateValue {
    return this.#lock.run(() => {
      const registers = {} as Record<RegisterName, number>;
      for (const name of REGISTER_NAMES) registers[name] = this.#load(WORD[name]);
      const take = (ring: Uint8Array, tail: number, count: number) =>
        Uint8Array.from({ length: count }, (_, index) => ring[(tail + index) % ring.length]!);
      const tail = this.#load(WORD.inputTail);
      return encodeUartState({
        registers,
        fifo: take(this.#fifo, this.#load(WORD.fifoHead), this.#load(WORD.fifoCount)),
        input: take(this.#input, tail, (this.#load(WORD.inputHead) - tail) >>> 0),
      });
    });
  }

  prepareState(value: unknown, version: number): () => void {
    const state = decodeUartState(this.stateName, value, version);
    return () =>
      this.#lock.run(() => {
        for (const name of REGISTER_NAMES) this.#store(WORD[name], state.registers[name]);
        this.#fifo.set(state.fifo);
        this.#store(WORD.fifoHead, 0);
        this.#store(WORD.fifoCount, state.fifo.length);
        this.#input.set(state.input);
        this.#store(WORD.inputTail, 0);
        this.#store(WORD.inputHead, state.input.length);
        this.#store(WORD.outputBlocked, this.#transmitterReady() ? 0 : 1);
        this.#update();
      });
  }

  #read(offset: number): number {
    const divisorAccess = (this.#load(WORD.lcr) & reg.LCR_DLAB) !== 0;
    switch (offset) {
      case reg.DATA:
        return divisorAccess ? this.#load(WORD.divisor) & 0xff : this.#receive();
      case reg.INTERRUPT_ENABLE:
        return divisorAccess ? this.#load(WORD.divisor) >>> 8 : this.#load(WORD.ier);
      case reg.INTERRUPT_ID: {
        const id = this.#interruptId();
        if (id === reg.IIR_TRANSMIT_EMPTY) {
          this.#store(WORD.thrInterrupt, 0);
          this.#update();
        }
        return id | (this.#fifoEnabled() ? reg.IIR_FIFO_ENABLED : 0);
      }
      case reg.LINE_CONTROL:
        return this.#load(WORD.lcr);
      case reg.MODEM_CONTROL:
        return this.#load(WORD.mcr);
      case reg.LINE_STATUS: {
        const errors = this.#load(WORD.lsr);
        const status =
          errors |
          (this.#load(WORD.fifoCount) > 0 ? reg.LSR_DATA_READY : 0) |
          (this.#transmitterReady() ? reg.LSR_TRANSMIT_HOLDING_EMPTY | reg.LSR_TRANSMITTER_EMPTY : 0);
        if (errors !== 0) {
          this.#store(WORD.lsr, 0);
          this.#update();
        }
        return status;
      }
      case reg.MODEM_STATUS: {
        const status = this.#load(WORD.msr);
        if ((status & reg.MSR_DELTAS) !== 0) {
          this.#store(WORD.msr, status & reg.MSR_LINES);
          this.#update();
        }
        return status;
      }
      case reg.SCRATCH:
        return this.#load(WORD.scratch);
      default:
        return 0;
    }
  }

  #write(offset: number, value: number): void {
    const divisorAccess = (this.#load(WORD.lcr) & reg.LCR_DLAB) !== 0;
    switch (offset) {
      case reg.DATA:
        if (divisorAccess) this.#store(WORD.divisor, (this.#load(WORD.divisor) & 0xff00) | value);
        else this.#transmit(value);
        break;
      case reg.INTERRUPT_ENABLE:
        if (divisorAccess) {
          this.#store(WORD.divisor, (this.#load(WORD.divisor) & 0xff) | (value << 8));
          break;
        }
        // Enabling it while the transmitter is empty raises it: drivers test the port that way
        if ((value & ~this.#load(WORD.ier) & reg.IER_TRANSMIT_EMPTY) !== 0 && this.#transmitterReady()) {
          this.#store(WORD.thrInterrupt, 1);
        }
        this.#store(WORD.ier, value & reg.IER_MASK);
        break;
      case reg.INTERRUPT_ID:
        this.#setFifoControl(value);
        break;
      case reg.LINE_CONTROL:
        this.#store(WORD.lcr, value);
        break;
      case reg.MODEM_CONTROL:
        this.#setModemControl(value & reg.MCR_MASK);
        break;
      case reg.SCRATCH:
        this.#store(WORD.scratch, value);
        break;
      // LSR and MSR are read-only here; other offsets do not exist
      default:
        return;
    }
    this.#update();
  }

  #transmit(byte: number): void {
    this.#store(WORD.thrInterrupt, 0);
    if ((this.#load(WORD.mcr) & reg.MCR_LOOPBACK) !== 0) {
      this.#loopBack(byte);
      this.#store(WORD.thrInterrupt, 1);
      return;
    }
    this.#append(byte);
    if (this.#transmitterReady()) this.#store(WORD.thrInterrupt, 1);
  }

  /** False where the output ring is full: the byte is lost. */
  #append(byte: number): boolean {
    const head = this.#load(WORD.outputHead);
    const used = (head - this.#load(WORD.outputTail)) >>> 0;
    if (used >= OUTPUT_RING_BYTES) return false;
    this.#output[head % OUTPUT_RING_BYTES] = byte;
    this.#store(WORD.outputHead, head + 1);
    // Only the first byte wakes the host: it drains all that it finds
    if (used === 0) this.#notify(WORD.outputNotify);
    // Whoever filled it, the guest is told when it has room again
    if (!this.#transmitterReady()) this.#store(WORD.outputBlocked, 1);
    return true;
  }

  #loopBack(byte: number): void {
    if (this.#load(WORD.fifoCount) >= this.#fifoDepth()) {
      this.#store(WORD.lsr, this.#load(WORD.lsr) | reg.LSR_OVERRUN);
      return;
    }
    this.#appendFifo(byte);
  }

  #receive(): number {
    const count = this.#load(WORD.fifoCount);
    if (count === 0) return 0;
    const head = this.#load(WORD.fifoHead);
    const byte = this.#fifo[head % reg.FIFO_BYTES]!;
    this.#store(WORD.fifoHead, (head + 1) % reg.FIFO_BYTES);
    this.#store(WORD.fifoCount, count - 1);
    this.#refill();
    this.#update();
    return byte;
  }

  #setFifoControl(value: number): void {
    const enableChanged = ((value ^ this.#load(WORD.fcr)) & reg.FCR_ENABLE) !== 0;
    if (enableChanged || (value & reg.FCR_CLEAR_RECEIVE) !== 0) this.#clearFifo();
    if ((enableChanged || (value & reg.FCR_CLEAR_TRANSMIT) !== 0) && this.#transmitterReady()) {
      this.#store(WORD.thrInterrupt, 1);
    }
    // With FIFOs off the other bits are not programmed
    this.#store(WORD.fcr, (value & reg.FCR_ENABLE) !== 0 ? value & 0xc9 : 0);
    this.#refill();
  }

  #setModemControl(mcr: number): void {
    this.#store(WORD.mcr, mcr);
    const before = this.#load(WORD.msr);
    const lines = (mcr & reg.MCR_LOOPBACK) !== 0 ? reg.loopbackLines(mcr) : reg.MSR_CONNECTED;
    const changed = (before ^ lines) & reg.MSR_LINES;
    // Of the ring indicator only the trailing edge counts
    const ringRises = (changed & lines & reg.MSR_RI) !== 0;
    const deltas = (changed >>> 4) & ~(ringRises ? reg.MSR_RI_TRAILING_EDGE : 0);
    this.#store(WORD.msr, lines | (before & reg.MSR_DELTAS) | deltas);
    this.#refill();
  }

  /** Moves waiting host input into the FIFO, as far as it goes. In loopback the wire is cut. */
  #refill(): void {
    if ((this.#load(WORD.mcr) & reg.MCR_LOOPBACK) !== 0) return;
    const head = this.#load(WORD.inputHead);
    let tail = this.#load(WORD.inputTail);
    while (tail !== head && this.#load(WORD.fifoCount) < this.#fifoDepth()) {
      this.#appendFifo(this.#input[tail % INPUT_RING_BYTES]!);
      tail = (tail + 1) >>> 0;
    }
    this.#store(WORD.inputTail, tail);
    // Half empty before the host is asked again: not a wake-up for every byte
    if (this.#load(WORD.inputBlocked) === 1 && (head - tail) >>> 0 <= INPUT_RING_BYTES / 2) {
      this.#store(WORD.inputBlocked, 0);
      this.#notify(WORD.inputNotify);
    }
  }

  #appendFifo(byte: number): void {
    const count = this.#load(WORD.fifoCount);
    this.#fifo[(this.#load(WORD.fifoHead) + count) % reg.FIFO_BYTES] = byte;
    this.#store(WORD.fifoCount, count + 1);
  }

  #clearFifo(): void {
    this.#store(WORD.fifoHead, 0);
    this.#store(WORD.fifoCount, 0);
  }

  #fifoEnabled(): boolean {
    return (this.#load(WORD.fcr) & reg.FCR_ENABLE) !== 0;
  }

  #fifoDepth(): number {
    return this.#fifoEnabled() ? reg.FIFO_BYTES : 1;
  }

  /** "Empty" promises a whole FIFO's room: drivers then write that many bytes without asking. */
  #transmitterReady(): boolean {
    const used = (this.#load(WORD.outputHead) - this.#load(WORD.outputTail)) >>> 0;
    return used <= OUTPUT_RING_BYTES - reg.FIFO_BYTES;
  }

  /** The highest pending interrupt, in the order of the data sheet's table. */
  #interruptId(): number {
    const ier = this.#load(WORD.ier);
    const received = this.#load(WORD.fifoCount);
    if ((ier & reg.IER_LINE_STATUS) !== 0 && (this.#load(WORD.lsr) & reg.LSR_ERRORS) !== 0) return reg.IIR_LINE_STATUS;
    if ((ier & reg.IER_RECEIVED) !== 0 && received > 0) {
      const trigger = this.#fifoEnabled() ? reg.TRIGGER_LEVELS[this.#load(WORD.fcr) >>> 6]! : 1;
      return received >= trigger ? reg.IIR_RECEIVED : reg.IIR_TIMEOUT;
    }
    if ((ier & reg.IER_TRANSMIT_EMPTY) !== 0 && this.#load(WORD.thrInterrupt) === 1) return reg.IIR_TRANSMIT_EMPTY;
    if ((ier & reg.IER_MODEM_STATUS) !== 0 && (this.#load(WORD.msr) & reg.MSR_DELTAS) !== 0) {
      return reg.IIR_MODEM_STATUS;
    }
    return reg.IIR_NONE;
  }

  /** Under the lock, so that the line follows the order of the states. */
  #update(): void {
    this.#line.set(this.#interruptId() !== reg.IIR_NONE);
  }

  #notify(word: number): void {
    Atomics.add(this.#words, word, 1);
    Atomics.notify(this.#words, word);
  }

  /** Unsigned. Plain, as stores are: all of this happens under the lock, whose own accesses order it */
  #load(index: number): number {
    return this.#words[index]! >>> 0;
  }

  #store(index: number, value: number): void {
    this.#words[index] = value | 0;
  }
}
