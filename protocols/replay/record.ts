import { Cursor, Writer } from '../bytes/mod.ts';
import { MAX_DISKS, MAX_TEXT_BYTES } from './limits.ts';

const KINDS = ['serial', 'console', 'key', 'pointer', 'wheel', 'disk', 'wake', 'checkpoint', 'end'] as const;

/** Something that came in, or a proof of the state. */
export type ReplayRecord = {
  /** Turns of the machine's loop before it: the only moments when something comes in */
  readonly round: number;
  /** Guest time then, in `ns` */
  readonly ns: number;
} & (
  | { readonly kind: 'serial' | 'console'; readonly bytes: Uint8Array }
  | { readonly kind: 'key'; readonly code: number; readonly down: boolean }
  | { readonly kind: 'pointer'; readonly x: number; readonly y: number; readonly buttons: number }
  | { readonly kind: 'wheel'; readonly vertical: number; readonly horizontal: number }
  /** A request of a disk has ended, in the order in which they began; `bytes` is what a read gave */
  | { readonly kind: 'disk'; readonly disk: number; readonly failed: boolean; readonly bytes: Uint8Array }
  /** An idle machine was woken before its next timer: time is `ns` now */
  | { readonly kind: 'wake' }
  | { readonly kind: 'checkpoint' | 'end'; readonly instructions: number; readonly digest: bigint }
);

export function encodeReplayRecord(record: ReplayRecord): Uint8Array {
  const body = new Writer()
    .u8(1 + KINDS.indexOf(record.kind))
    .u64(BigInt(record.round))
    .u64(BigInt(record.ns));
  switch (record.kind) {
    case 'serial':
    case 'console':
      body.bytes(record.bytes);
      break;
    case 'key':
      body.u16(record.code).u8(record.down ? 1 : 0);
      break;
    case 'pointer':
      body.u16(record.x).u16(record.y).u8(record.buttons);
      break;
    case 'wheel':
      body.i32(record.vertical).i32(record.horizontal);
      break;
    case 'disk':
      body
        .u16(record.disk)
        .u8(record.failed ? 1 : 0)
        .bytes(record.bytes);
      break;
    case 'wake':
      break;
    default:
      body.u64(BigInt(record.instructions)).u64(record.digest);
  }
  const bytes = body.finish();
  return new Writer(4 + bytes.length).u32(bytes.length).bytes(bytes).finish();
}

/** The body of one frame. @throws WireError */
export function decodeReplayRecord(body: Uint8Array): ReplayRecord {
  const cursor = new Cursor(body, 'recording');
  const number = cursor.u8('kind');
  const kind = KINDS[number - 1];
  if (kind === undefined) throw cursor.error('ERR_WIRE_VALUE', `Cannot accept a record of kind ${number}`);
  const round = safe(cursor, cursor.u64('round'));
  const ns = safe(cursor, cursor.u64('time'));
  const at = { round, ns };
  const flag = (field: string): boolean => {
    const value = cursor.u8(field);
    if (value > 1) throw cursor.error('ERR_WIRE_VALUE', `Cannot accept ${field} ${value}: 0 or 1`);
    return value === 1;
  };
  let record: ReplayRecord;
  switch (kind) {
    case 'serial':
    case 'console': {
      if (cursor.remaining < 1 || cursor.remaining > MAX_TEXT_BYTES) {
        throw cursor.error('ERR_WIRE_LIMIT', `Cannot accept ${cursor.remaining} bytes of input: 1..${MAX_TEXT_BYTES}`);
      }
      record = { ...at, kind, bytes: new Uint8Array(cursor.rest()) };
      break;
    }
    case 'key':
      record = { ...at, kind, code: cursor.u16('code'), down: flag('down') };
      break;
    case 'pointer':
      record = { ...at, kind, x: cursor.u16('x'), y: cursor.u16('y'), buttons: cursor.u8('buttons') };
      break;
    case 'wheel':
      record = { ...at, kind, vertical: cursor.i32('vertical'), horizontal: cursor.i32('horizontal') };
      break;
    case 'disk': {
      const disk = cursor.u16('disk');
      if (disk >= MAX_DISKS) throw cursor.error('ERR_WIRE_LIMIT', `Cannot accept disk ${disk}: 0..${MAX_DISKS - 1}`);
      record = { ...at, kind, disk, failed: flag('failed'), bytes: new Uint8Array(cursor.rest()) };
      break;
    }
    case 'wake':
      record = { ...at, kind };
      break;
    default:
      record = { ...at, kind, instructions: safe(cursor, cursor.u64('instructions')), digest: cursor.u64('digest') };
  }
  cursor.end();
  return record;
}

function safe(cursor: Cursor, value: bigint): number {
  if (value > BigInt(Number.MAX_SAFE_INTEGER))
    throw cursor.error('ERR_WIRE_LIMIT', `Cannot accept ${value}: beyond 2^53`);
  return Number(value);
}
