import { WireError } from '../bytes/mod.ts';
import { caisson } from './generated/control.js';
import {
  DEVICE_STATE_CHUNK_BYTES,
  DIGEST_BYTES,
  MAX_CONFIG_BYTES,
  MAX_CONTROL_BYTES,
  MAX_DEVICE_STATE_BYTES,
  MAX_DEVICES,
  MAX_FEATURES,
  MAX_NAME_LENGTH,
  MAX_PASSES,
  MAX_RAM_BLOCKS,
  MAX_REASON_LENGTH,
  MAX_REASONS,
  SESSION_ID_BYTES,
} from './limits.ts';

export interface RamBlock {
  readonly name: string;
  /** Of 4096 `bytes` */
  readonly pages: number;
}

export interface DeviceVersion {
  readonly name: string;
  readonly version: number;
}

export interface Manifest {
  readonly producer: string;
  readonly ram: readonly RamBlock[];
  readonly devices: readonly DeviceVersion[];
  /** MessagePack */
  readonly config: Uint8Array;
}

/** The messages of control.proto as checked values; see there for what each means. */
export type ControlMessage =
  | {
      readonly kind: 'hello';
      readonly versionMin: number;
      readonly versionMax: number;
      readonly sessionId: Uint8Array;
      readonly features: readonly string[];
    }
  | {
      readonly kind: 'helloAck';
      readonly version: number;
      readonly sessionId: Uint8Array;
      readonly features: readonly string[];
    }
  | ({ readonly kind: 'manifest' } & Manifest)
  | { readonly kind: 'manifestAck' }
  | { readonly kind: 'refuse'; readonly reasons: readonly string[] }
  | { readonly kind: 'begin' }
  | { readonly kind: 'passBegin'; readonly pass: number }
  | { readonly kind: 'passEnd'; readonly pass: number; readonly records: number; readonly pages: number }
  | { readonly kind: 'passAck'; readonly pass: number }
  | { readonly kind: 'stopSource'; readonly running: boolean }
  | { readonly kind: 'deviceState'; readonly offset: number; readonly totalBytes: number; readonly chunk: Uint8Array }
  | {
      readonly kind: 'digest';
      readonly ram: Uint8Array;
      readonly devices: Uint8Array;
      readonly recomputed: boolean;
    }
  | { readonly kind: 'ready' }
  | { readonly kind: 'commit' }
  | { readonly kind: 'running' }
  | { readonly kind: 'abort'; readonly reason: string };

export type ControlKind = ControlMessage['kind'];

const NAME = 'migration control';
const Control = caisson.migration.Control;

/** The message without its length field. */
export function encodeControl(message: ControlMessage): Uint8Array {
  const { kind, ...fields } = message;
  const bytes = Control.encode({ [kind]: fields }).finish();
  if (bytes.length > MAX_CONTROL_BYTES) {
    throw new RangeError(`Cannot send ${kind}: ${bytes.length} bytes, limit is ${MAX_CONTROL_BYTES}`);
  }
  return bytes;
}

/** Length and message, as they stand on the stream. */
export function frameControl(message: ControlMessage): Uint8Array {
  const body = encodeControl(message);
  const frame = new Uint8Array(4 + body.length);
  new DataView(frame.buffer).setUint32(0, body.length, true);
  frame.set(body, 4);
  return frame;
}

/**
 * Decodes one message and checks the shape of every field; whether it may come now is for {@link SessionState}.
 * @throws WireError
 */
export function decodeControl(bytes: Uint8Array): ControlMessage {
  if (bytes.length > MAX_CONTROL_BYTES) throw refuse('message', `${bytes.length} bytes, limit is ${MAX_CONTROL_BYTES}`);
  let decoded: ReturnType<typeof Control.decode>;
  try {
    decoded = Control.decode(bytes);
  } catch (cause) {
    // The library throws plain errors for truncation, bad wire types, depth and bad UTF-8.
    throw new WireError('ERR_WIRE_VALUE', `Cannot accept a ${NAME} message: not well-formed protobuf`, {
      message: NAME,
      cause,
    });
  }
  const kind = decoded.body;
  if (kind === undefined || !Object.hasOwn(READERS, kind)) throw refuse('message', 'unknown or empty');
  return READERS[kind as ControlKind](new Fields(kind, decoded[kind]));
}

const READERS: { readonly [Kind in ControlKind]: (fields: Fields) => ControlMessage } = {
  hello: (f) => ({
    kind: 'hello',
    versionMin: f.integer('versionMin', 1, 0xffff),
    versionMax: f.integer('versionMax', 1, 0xffff),
    sessionId: f.bytes('sessionId', SESSION_ID_BYTES, SESSION_ID_BYTES),
    features: f.list('features', MAX_FEATURES, (value, path) => name(value, path)),
  }),
  helloAck: (f) => ({
    kind: 'helloAck',
    version: f.integer('version', 1, 0xffff),
    sessionId: f.bytes('sessionId', SESSION_ID_BYTES, SESSION_ID_BYTES),
    features: f.list('features', MAX_FEATURES, (value, path) => name(value, path)),
  }),
  manifest: (f) => ({
    kind: 'manifest',
    producer: name(f.get('producer'), 'manifest.producer'),
    ram: f.list('ram', MAX_RAM_BLOCKS, (value, path) => {
      const block = new Fields(path, value);
      return { name: name(block.get('name'), `${path}.name`), pages: block.integer('pages', 1, 0xffff_ffff) };
    }),
    devices: f.list('devices', MAX_DEVICES, (value, path) => {
      const device = new Fields(path, value);
      return { name: name(device.get('name'), `${path}.name`), version: device.integer('version', 0, 0xffff_ffff) };
    }),
    config: f.bytes('config', 1, MAX_CONFIG_BYTES),
  }),
  manifestAck: () => ({ kind: 'manifestAck' }),
  refuse: (f) => ({ kind: 'refuse', reasons: f.list('reasons', MAX_REASONS, (value, path) => reason(value, path)) }),
  begin: () => ({ kind: 'begin' }),
  passBegin: (f) => ({ kind: 'passBegin', pass: f.integer('pass', 1, MAX_PASSES) }),
  passEnd: (f) => ({
    kind: 'passEnd',
    pass: f.integer('pass', 1, MAX_PASSES),
    records: f.integer('records', 0, 0xffff_ffff),
    pages: f.integer('pages', 0, 0xffff_ffff),
  }),
  passAck: (f) => ({ kind: 'passAck', pass: f.integer('pass', 1, MAX_PASSES) }),
  stopSource: (f) => ({ kind: 'stopSource', running: f.boolean('running') }),
  deviceState: (f) => ({
    kind: 'deviceState',
    offset: f.integer('offset', 0, MAX_DEVICE_STATE_BYTES - 1),
    totalBytes: f.integer('totalBytes', 1, MAX_DEVICE_STATE_BYTES),
    chunk: f.bytes('chunk', 1, DEVICE_STATE_CHUNK_BYTES),
  }),
  digest: (f) => ({
    kind: 'digest',
    ram: f.bytes('ram', DIGEST_BYTES, DIGEST_BYTES),
    devices: f.bytes('devices', DIGEST_BYTES, DIGEST_BYTES),
    recomputed: f.boolean('recomputed'),
  }),
  ready: () => ({ kind: 'ready' }),
  commit: () => ({ kind: 'commit' }),
  running: () => ({ kind: 'running' }),
  abort: (f) => ({ kind: 'abort', reason: reason(f.get('reason'), 'abort.reason') }),
};

/** Reads what the library decoded; nothing of it is believed. */
class Fields {
  readonly #path: string;
  readonly #values: { readonly [field: string]: unknown };

  constructor(path: string, value: unknown) {
    if (typeof value !== 'object' || value === null) throw refuse(path, 'missing');
    this.#path = path;
    this.#values = value as { readonly [field: string]: unknown };
  }

  get(field: string): unknown {
    return this.#values[field];
  }

  integer(field: string, min: number, max: number): number {
    const value = this.#values[field];
    if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < min || value > max) {
      throw refuse(`${this.#path}.${field}`, `${String(value)}, expected ${min}..${max}`);
    }
    return value;
  }

  boolean(field: string): boolean {
    const value = this.#values[field];
    if (typeof value !== 'boolean') throw refuse(`${this.#path}.${field}`, 'not a boolean');
    return value;
  }

  bytes(field: string, min: number, max: number): Uint8Array {
    const value = this.#values[field];
    if (!(value instanceof Uint8Array) || value.length < min || value.length > max) {
      const found = value instanceof Uint8Array ? `${value.length} bytes` : 'no bytes';
      throw refuse(`${this.#path}.${field}`, `${found}, expected ${min}..${max}`);
    }
    // The library gives a Buffer in Node, whose slice() and toJSON() are not those of its class.
    return new Uint8Array(value.buffer, value.byteOffset, value.byteLength);
  }

  list<T>(field: string, max: number, read: (value: unknown, path: string) => T): T[] {
    const value = this.#values[field];
    if (!Array.isArray(value)) throw refuse(`${this.#path}.${field}`, 'not a list');
    if (value.length > max) throw refuse(`${this.#path}.${field}`, `${value.length} items, limit is ${max}`);
    return value.map((item, index) => read(item, `${this.#path}.${field}.${index}`));
  }
}

function name(value: unknown, path: string): string {
  if (typeof value !== 'string' || value.length > MAX_NAME_LENGTH || !/^[\x20-\x7e]+$/.test(value)) {
    throw refuse(path, `not a name of 1..${MAX_NAME_LENGTH} printable characters`);
  }
  return value;
}

/** Text of the peer that a person will read: shown, never interpreted. */
function reason(value: unknown, path: string): string {
  if (typeof value !== 'string' || value.length > MAX_REASON_LENGTH) {
    throw refuse(path, `not text of at most ${MAX_REASON_LENGTH} characters`);
  }
  return printable(value);
}

/** Cuts and cleans a text so that it may be sent as a reason. */
export function printable(text: string): string {
  return text.replace(/[^\x20-\x7e]/g, '?').slice(0, MAX_REASON_LENGTH);
}

function refuse(path: string, found: string): WireError {
  return new WireError('ERR_WIRE_VALUE', `Cannot accept ${NAME} ${path}: ${found}`, { message: NAME });
}
