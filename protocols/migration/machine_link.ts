import { Cursor, WireError, Writer } from '../bytes/mod.ts';
import type { DeviceVersion } from './control.ts';
import { MAX_CONFIG_BYTES, MAX_DEVICE_STATE_BYTES, MAX_DEVICES, MAX_NAME_LENGTH } from './limits.ts';
import { MAX_RECORD_BYTES } from './record.ts';

// The link between a machine and its migration role: the machine keeps RAM and devices, the migration role talks
// with the other host. Frames of a Channel (u32 length, u16 type); requests go one at a time and are answered by
// `done` or `fault`; records and state parts flow beside them. Either side may have been taken over by its own peer.

/** Frame types; requests of the migration role first */
export const LinkFrame = {
  /** → done: {@link MachineDescription} */
  describe: 1,
  /** Source: all pages are to be sent. → done */
  track: 2,
  /** Source: collects what was dirtied. → done: u32 pages that wait */
  sync: 3,
  /** Source: u32 pass. Sends the waiting pages as `record` frames. → done: {@link PassTotals} */
  pass: 4,
  /** Source: ends the pass that runs, at once; no answer of its own */
  stopPass: 5,
  /** Source: harts stand, disks are flushed. → done: u8 ran before */
  pause: 6,
  /** Source: the devices, as `state` frames. → done: u32 bytes */
  save: 7,
  /** u8 compute again from RAM. → done: SHA-256 of the page table */
  digest: 8,
  /** Source: gives the disks away. → done */
  release: 9,
  /** Source: the guest runs elsewhere. → done */
  handover: 10,
  /** Source: forget the migration; disks are taken back and the guest runs on. → done */
  untrack: 11,
  /** Source: u8 percent. → done */
  throttle: 12,
  /** Destination: pages will come. → done */
  incoming: 20,
  /** Destination: all records before it are in RAM. → done */
  passMark: 21,
  /** Destination: u32 bytes of state that came as `state` frames. Decodes and validates. → done */
  prepare: 22,
  /** Destination: u8 run. Takes the disks, applies the state, runs. → done */
  commit: 23,
  /** Destination: as if nothing had come. → done */
  abort: 24,

  /** A page record, both ways */
  record: 40,
  /** u32 offset, bytes of the device state, both ways */
  state: 41,
  /** Machine: u16 request, answer */
  done: 50,
  /** Machine: u16 request, code, text */
  fault: 51,
} as const;
export type LinkFrame = (typeof LinkFrame)[keyof typeof LinkFrame];

/** Largest frame of this link, in `bytes` */
export const MAX_LINK_PAYLOAD_BYTES = MAX_RECORD_BYTES;
/** A part of the device state in one frame, in `bytes` */
export const LINK_STATE_CHUNK_BYTES = 256 * 1024;

const MAX_CODE_LENGTH = 64;
const MAX_TEXT_BYTES = 4096;

/** What the manifest is made of */
export interface MachineDescription {
  readonly ramPages: number;
  readonly running: boolean;
  /** MessagePack */
  readonly config: Uint8Array;
  readonly devices: readonly DeviceVersion[];
}

export function encodeDescription(description: MachineDescription): Uint8Array {
  const { config, devices } = description;
  if (config.length > MAX_CONFIG_BYTES) {
    throw new RangeError(
      `Cannot describe the machine: its config has ${config.length} bytes, limit is ${MAX_CONFIG_BYTES}`,
    );
  }
  if (devices.length > MAX_DEVICES) {
    throw new RangeError(`Cannot describe the machine: ${devices.length} devices, limit is ${MAX_DEVICES}`);
  }
  const writer = new Writer(256 + config.length);
  writer.u32(description.ramPages).u8(description.running ? 1 : 0);
  writer.u32(config.length).bytes(config).u16(devices.length);
  for (const device of devices) {
    const name = new TextEncoder().encode(device.name);
    writer.u8(name.length).bytes(name).u32(device.version);
  }
  return writer.finish();
}

export function decodeDescription(bytes: Uint8Array): MachineDescription {
  const cursor = new Cursor(bytes, 'machine description');
  const ramPages = cursor.u32('RAM pages');
  if (ramPages === 0) throw cursor.error('ERR_WIRE_VALUE', 'Cannot accept a machine description: no RAM');
  const running = decodeFlag(cursor, 'running');
  const configBytes = cursor.u32('config length');
  if (configBytes > MAX_CONFIG_BYTES) {
    throw cursor.error('ERR_WIRE_LIMIT', `Cannot read config: ${configBytes} bytes, limit is ${MAX_CONFIG_BYTES}`);
  }
  const config = cursor.bytes(configBytes, 'config');
  const count = cursor.u16('device count');
  if (count > MAX_DEVICES) {
    throw cursor.error('ERR_WIRE_LIMIT', `Cannot read devices: ${count}, limit is ${MAX_DEVICES}`);
  }
  const devices: DeviceVersion[] = [];
  for (let i = 0; i < count; i++) {
    const name = cursor.utf8(cursor.u8('name length'), MAX_NAME_LENGTH, 'device name');
    devices.push({ name, version: cursor.u32('device version') });
  }
  cursor.end();
  return { ramPages, running, config, devices };
}

export interface PassTotals {
  readonly records: number;
  /** All pages of the pass, zero ones too */
  readonly pages: number;
  readonly zeroPages: number;
}

export function encodePassTotals(totals: PassTotals): Uint8Array {
  return new Writer(12).u32(totals.records).u32(totals.pages).u32(totals.zeroPages).finish();
}

export function decodePassTotals(bytes: Uint8Array): PassTotals {
  const cursor = new Cursor(bytes, 'pass totals');
  const totals = { records: cursor.u32('records'), pages: cursor.u32('pages'), zeroPages: cursor.u32('zero pages') };
  cursor.end();
  return totals;
}

/** One u32 of a request or an answer. */
export function decodeNumber(bytes: Uint8Array, name: string, max = 0xffff_ffff): number {
  const cursor = new Cursor(bytes, name);
  const value = cursor.u32('value');
  cursor.end();
  if (value > max) throw cursor.error('ERR_WIRE_LIMIT', `Cannot accept ${name}: ${value}, limit is ${max}`);
  return value;
}

export function encodeNumber(value: number): Uint8Array {
  return new Writer(4).u32(value).finish();
}

export function decodeBoolean(bytes: Uint8Array, name: string): boolean {
  const cursor = new Cursor(bytes, name);
  const value = decodeFlag(cursor, 'value');
  cursor.end();
  return value;
}

export function encodeBoolean(value: boolean): Uint8Array {
  return Uint8Array.of(value ? 1 : 0);
}

function decodeFlag(cursor: Cursor, field: string): boolean {
  const value = cursor.u8(field);
  if (value > 1) throw cursor.error('ERR_WIRE_VALUE', `Cannot read ${field}: ${value}, expected 0 or 1`);
  return value === 1;
}

/** Collects the parts of a device state: in order, without holes, up to the limit. */
export class StateCollector {
  #parts: Uint8Array[] = [];
  #length = 0;

  /** In `bytes` */
  get length(): number {
    return this.#length;
  }

  /** @throws WireError */
  add(offset: number, chunk: Uint8Array): void {
    if (offset !== this.#length) {
      throw new WireError('ERR_WIRE_STATE', `Cannot accept device state at ${offset}: ${this.#length} bytes came`);
    }
    if (chunk.length === 0 || chunk.length > MAX_DEVICE_STATE_BYTES - this.#length) {
      throw new WireError(
        'ERR_WIRE_LIMIT',
        `Cannot accept ${chunk.length} more bytes of device state: limit is ${MAX_DEVICE_STATE_BYTES} in all`,
      );
    }
    this.#parts.push(new Uint8Array(chunk));
    this.#length += chunk.length;
  }

  /** The whole; the collector is empty afterwards. */
  take(): Uint8Array<ArrayBuffer> {
    const whole = new Uint8Array(this.#length);
    let at = 0;
    for (const part of this.#parts) {
      whole.set(part, at);
      at += part.length;
    }
    this.#parts = [];
    this.#length = 0;
    return whole;
  }
}

export function decodeStateFrame(bytes: Uint8Array): { offset: number; chunk: Uint8Array } {
  const cursor = new Cursor(bytes, 'device state part');
  return { offset: cursor.u32('offset'), chunk: cursor.rest() };
}

export function encodeFault(request: number, code: string, text: string): Uint8Array {
  const encoder = new TextEncoder();
  const codeBytes = encoder.encode(code.slice(0, MAX_CODE_LENGTH));
  const textBytes = encoder.encode(text.slice(0, MAX_TEXT_BYTES / 4));
  return new Writer(128).u16(request).u8(codeBytes.length).bytes(codeBytes).bytes(textBytes).finish();
}

export function decodeFault(bytes: Uint8Array): { request: number; code: string; text: string } {
  const cursor = new Cursor(bytes, 'machine fault');
  const request = cursor.u16('request');
  const code = cursor.utf8(cursor.u8('code length'), MAX_CODE_LENGTH, 'code');
  return { request, code, text: cursor.utf8(cursor.remaining, MAX_TEXT_BYTES, 'text') };
}

export function encodeDone(request: number, answer: Uint8Array): Uint8Array {
  return new Writer(2 + answer.length).u16(request).bytes(answer).finish();
}

export function decodeDone(bytes: Uint8Array): { request: number; answer: Uint8Array } {
  const cursor = new Cursor(bytes, 'machine answer');
  return { request: cursor.u16('request'), answer: cursor.rest() };
}
