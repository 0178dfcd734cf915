import type { MachineState } from '../../emulator/machine/machine_api.ts';
import type { StateValue } from '../../emulator/state/state.ts';
import { WireError } from '../../protocols/bytes/mod.ts';
import type { MessagePackLimits } from '../../protocols/messagepack/mod.ts';
import { MAX_DEVICE_STATE_BYTES, MAX_DEVICES, MAX_NAME_LENGTH } from '../../protocols/migration/mod.ts';
import { decodeMessagePack, encodeMessagePack, type PlainValue } from './messagepack.ts';

/** Devices' states are shallow; framebuffers and queues are binaries, not lists. */
const LIMITS: MessagePackLimits = { maxDepth: 24, maxItems: 262_144, maxTextBytes: 64 * 1024 };

/** Encodes what a machine saved, for a stream or a file. */
export function encodeMachineState(state: MachineState): Uint8Array {
  const bytes = encodeMessagePack({ config: state.config, devices: state.devices });
  if (bytes.length > MAX_DEVICE_STATE_BYTES) {
    throw new RangeError(`Cannot save the devices: ${bytes.length} bytes, limit is ${MAX_DEVICE_STATE_BYTES}`);
  }
  return bytes;
}

/**
 * Decodes bytes from anywhere into a value of the right shape. What the states mean, and whether they belong to
 * this machine, is for its `prepareState()`.
 * @throws WireError
 */
export function decodeMachineState(bytes: Uint8Array): MachineState {
  if (bytes.length > MAX_DEVICE_STATE_BYTES) {
    throw refuse(`${bytes.length} bytes, limit is ${MAX_DEVICE_STATE_BYTES}`, 'ERR_WIRE_LIMIT');
  }
  const { config, devices } = takeMap(decodeMessagePack(bytes, LIMITS), 'state', ['config', 'devices']);
  if (!Array.isArray(devices)) throw refuse('devices is not a list');
  if (devices.length > MAX_DEVICES) {
    throw refuse(`${devices.length} devices, limit is ${MAX_DEVICES}`, 'ERR_WIRE_LIMIT');
  }
  const seen = new Set<string>();
  return {
    config: config as StateValue,
    devices: devices.map((item, index) => {
      const path = `devices.${index}`;
      const { name, version, state } = takeMap(item, path, ['name', 'version', 'state']);
      if (typeof name !== 'string' || name.length < 1 || name.length > MAX_NAME_LENGTH) {
        throw refuse(`${path}.name is not a name`);
      }
      if (seen.has(name)) throw refuse(`device ${JSON.stringify(name)} comes twice`);
      seen.add(name);
      if (typeof version !== 'number' || !Number.isSafeInteger(version) || version < 0) {
        throw refuse(`${path}.version is not a version`);
      }
      return { name, version, state: state as StateValue };
    }),
  };
}

/** Decodes the configuration of a manifest. */
export function decodeMachineConfig(bytes: Uint8Array): StateValue {
  return decodeMessagePack(bytes, { ...LIMITS, maxItems: 4096 }) as StateValue;
}

/** Where two configurations differ first, as `path: theirs, ours`; undefined when they are equal by value. */
export function firstDifference(theirs: StateValue, ours: StateValue, path = 'config'): string | undefined {
  if (typeof theirs === 'object' && theirs !== null && typeof ours === 'object' && ours !== null) {
    if (theirs instanceof Uint8Array || ours instanceof Uint8Array) {
      if (!(theirs instanceof Uint8Array && ours instanceof Uint8Array)) return `${path}: of different kinds`;
      return theirs.length === ours.length && theirs.every((byte, index) => byte === ours[index])
        ? undefined
        : `${path}: other bytes`;
    }
    if (Array.isArray(theirs) !== Array.isArray(ours)) return `${path}: of different kinds`;
    const left = new Map<string, StateValue>(Object.entries(theirs));
    const right = new Map<string, StateValue>(Object.entries(ours));
    for (const key of [...left.keys(), ...right.keys()]) {
      if (!left.has(key)) return `${path}.${key}: missing at the source`;
      if (!right.has(key)) return `${path}.${key}: unknown to the destination`;
      const difference = firstDifference(left.get(key)!, right.get(key)!, `${path}.${key}`);
      if (difference !== undefined) return difference;
    }
    return undefined;
  }
  // MessagePack may carry the same integer as number or bigint.
  const same = isInteger(theirs) && isInteger(ours) ? BigInt(theirs) === BigInt(ours) : Object.is(theirs, ours);
  return same ? undefined : `${path}: source has ${show(theirs)}, destination has ${show(ours)}`;
}

function isInteger(value: StateValue): value is number | bigint {
  return typeof value === 'bigint' || (typeof value === 'number' && Number.isSafeInteger(value));
}

function show(value: StateValue): string {
  return String(value instanceof Uint8Array ? 'bytes' : value).slice(0, 64);
}

function takeMap(value: PlainValue | undefined, path: string, fields: readonly string[]): Record<string, PlainValue> {
  if (typeof value !== 'object' || value === null || Array.isArray(value) || value instanceof Uint8Array) {
    throw refuse(`${path} is not a map`);
  }
  const map = value as Record<string, PlainValue>;
  for (const field of fields) if (!Object.hasOwn(map, field)) throw refuse(`${path}.${field} is missing`);
  const extra = Object.keys(map).find((field) => !fields.includes(field));
  if (extra !== undefined) throw refuse(`${path} has an unknown field ${JSON.stringify(extra.slice(0, 64))}`);
  return map;
}

function refuse(found: string, code: ConstructorParameters<typeof WireError>[0] = 'ERR_WIRE_VALUE'): WireError {
  return new WireError(code, `Cannot accept a machine state: ${found}`, { message: 'machine state' });
}
