import { Cursor, Writer } from '../bytes/mod.ts';
import { MAX_SHIFT } from './limits.ts';

// A recording of what came into a machine from outside, so that a run can be repeated instruction for instruction.
//
//   file     frame…                      the first is the header, the last an end record
//   frame    u32 length, body
//   header   "CAISSONR", u16 version, u8 shift, u8 harts, u64 RAM, u64 wall clock, 32 bytes seed, u32 guest
//   record   u8 kind, u64 round, u64 ns, what the kind has
//
// Big-endian. Versions are not compatible: a recording is replayed by the version that made it.

const MAGIC = 0x43414953534f4e52n; // "CAISSONR"
const VERSION = 1;
export const SEED_BYTES = 32;
export const HEADER_BODY_BYTES = 8 + 2 + 1 + 1 + 8 + 8 + SEED_BYTES + 4;
const MAX_HARTS = 8;

export interface ReplayHeader {
  /** Each instruction takes 2^shift `ns` */
  readonly shift: number;
  readonly harts: number;
  /** In `bytes` */
  readonly ramBytes: number;
  /** Wall clock at the start, in `ns` since 1970 */
  readonly wallNs: bigint;
  /** Of the generator that the guest's randomness comes from */
  readonly seed: Uint8Array;
  /** Checksum over what the guest was started with: another guest cannot be replayed */
  readonly guest: number;
}

export function encodeReplayHeader(header: ReplayHeader): Uint8Array {
  return new Writer(4 + HEADER_BODY_BYTES)
    .u32(HEADER_BODY_BYTES)
    .u64(MAGIC)
    .u16(VERSION)
    .u8(header.shift)
    .u8(header.harts)
    .u64(BigInt(header.ramBytes))
    .u64(header.wallNs)
    .bytes(header.seed)
    .u32(header.guest)
    .finish();
}

/** The body of the first frame. @throws WireError */
export function decodeReplayHeader(body: Uint8Array): ReplayHeader {
  const cursor = new Cursor(body, 'recording header');
  cursor.expectU64(MAGIC, 'magic');
  cursor.expectU16(VERSION, 'version');
  const shift = cursor.u8('shift');
  const harts = cursor.u8('harts');
  const ramBytes = cursor.u64('RAM');
  const wallNs = cursor.u64('wall clock');
  const seed = new Uint8Array(cursor.bytes(SEED_BYTES, 'seed'));
  const guest = cursor.u32('guest');
  cursor.end();
  if (shift > MAX_SHIFT) throw cursor.error('ERR_WIRE_VALUE', `Cannot accept a shift of ${shift}: 0..${MAX_SHIFT}`);
  if (harts < 1 || harts > MAX_HARTS) throw cursor.error('ERR_WIRE_VALUE', `Cannot accept ${harts} harts`);
  if (ramBytes > 1n << 40n) throw cursor.error('ERR_WIRE_VALUE', `Cannot accept ${ramBytes} bytes of RAM`);
  return { shift, harts, ramBytes: Number(ramBytes), wallNs, seed, guest };
}
