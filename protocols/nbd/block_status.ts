import { Cursor, type WireError, Writer } from '../bytes/mod.ts';
import { MAX_RECEIVED_EXTENTS } from './limits.ts';

/** Largest number that loses nothing as a double */
const MAX_EXACT = BigInt(Number.MAX_SAFE_INTEGER);

/** Bytes of a run with one state. */
export interface Extent {
  /** In `bytes`, never 0 */
  readonly lengthBytes: number;
  /** Meaning depends on the context; bits of STATE for base:allocation */
  readonly flags: number;
}

/** Payload of a BLOCK_STATUS chunk */
export interface BlockStatus {
  /** Id that the server gave the context when it was selected */
  readonly contextId: number;
  readonly extents: readonly Extent[];
}

export function encodeBlockStatus(status: BlockStatus): Uint8Array<ArrayBuffer> {
  const writer = new Writer(4 + status.extents.length * 8).u32(status.contextId);
  for (const extent of status.extents) writer.u32(extent.lengthBytes).u32(extent.flags);
  return writer.finish();
}

/** Payload of a BLOCK_STATUS_EXT chunk: extended headers have no other. */
export function encodeExtendedBlockStatus(status: BlockStatus): Uint8Array<ArrayBuffer> {
  const writer = new Writer(8 + status.extents.length * 16).u32(status.contextId).u32(status.extents.length);
  for (const extent of status.extents) writer.u64(BigInt(extent.lengthBytes)).u64(BigInt(extent.flags));
  return writer.finish();
}

/** Payload of a BLOCK_STATUS_EXT chunk. @throws WireError */
export function decodeExtendedBlockStatus(payload: Uint8Array): BlockStatus {
  const cursor = new Cursor(payload, 'NBD_REPLY_TYPE_BLOCK_STATUS_EXT');
  const contextId = cursor.u32('context id');
  const count = cursor.u32('descriptor count');
  // "header length is equal to descriptor count * 16 + 8"
  if (count === 0 || cursor.remaining !== count * 16) {
    throw cursor.error(
      'ERR_WIRE_VALUE',
      `Cannot read block status: ${count} descriptors announced, ${cursor.remaining} bytes follow`,
    );
  }
  if (count > MAX_RECEIVED_EXTENTS) throw tooMany(cursor, count);
  const extents: Extent[] = [];
  for (let index = 0; index < count; index++) {
    const length = cursor.u64('extent length');
    const flags = cursor.u64('extent status');
    if (length === 0n) throw cursor.error('ERR_WIRE_VALUE', 'Cannot read block status: an extent of 0 bytes');
    if (flags > MAX_EXACT) {
      throw cursor.error('ERR_WIRE_LIMIT', `Cannot read block status: status ${flags}, limit is ${MAX_EXACT}`);
    }
    // The last extent may reach behind the request, as far as it likes; no export of ours reaches 2^53.
    extents.push({ lengthBytes: Number(length < MAX_EXACT ? length : MAX_EXACT), flags: Number(flags) });
  }
  cursor.end();
  return { contextId, extents };
}

function tooMany(cursor: Cursor, count: number): WireError {
  return cursor.error('ERR_WIRE_LIMIT', `Cannot read block status: ${count} extents, limit is ${MAX_RECEIVED_EXTENTS}`);
}

/** Payload of a BLOCK_STATUS request that asks for some of the selected contexts only */
export function encodeBlockStatusFilter(filter: BlockStatusFilter): Uint8Array<ArrayBuffer> {
  const writer = new Writer(8 + filter.contextIds.length * 4).u64(BigInt(filter.lengthBytes));
  for (const id of filter.contextIds) writer.u32(id);
  return writer.finish();
}

/** What a BLOCK_STATUS request with a payload asks: the range's length, and which contexts to answer for. */
export interface BlockStatusFilter {
  /** In `bytes`; rounded from 2^53 up, as in Request */
  readonly lengthBytes: number;
  /** Not empty, all different, selected before */
  readonly contextIds: readonly number[];
}

/** @throws WireError; the request is refused then, the session goes on */
export function decodeBlockStatusFilter(payload: Uint8Array, selected: number): BlockStatusFilter {
  const cursor = new Cursor(payload, 'NBD_CMD_BLOCK_STATUS payload');
  const lengthBytes = Number(cursor.u64('effect length'));
  const contextIds: number[] = [];
  while (cursor.remaining > 0) {
    const id = cursor.u32('context id');
    // The ids that this server gives are 1, 2, and so on.
    if (id === 0 || id > selected || contextIds.includes(id)) {
      throw cursor.error('ERR_WIRE_VALUE', `Cannot tell status of context ${id}: not selected, or asked twice`);
    }
    contextIds.push(id);
  }
  if (contextIds.length === 0) throw cursor.error('ERR_WIRE_VALUE', 'Cannot tell status: no context is asked for');
  return { lengthBytes, contextIds };
}

export function decodeBlockStatus(payload: Uint8Array): BlockStatus {
  const cursor = new Cursor(payload, 'NBD_REPLY_TYPE_BLOCK_STATUS');
  const contextId = cursor.u32('context id');
  if (cursor.remaining === 0 || cursor.remaining % 8 !== 0) {
    throw cursor.error('ERR_WIRE_VALUE', `Cannot read block status: ${cursor.remaining} bytes of extents of 8`);
  }
  const count = cursor.remaining / 8;
  if (count > MAX_RECEIVED_EXTENTS) throw tooMany(cursor, count);
  const extents: Extent[] = [];
  for (let index = 0; index < count; index++) {
    const lengthBytes = cursor.u32('extent length');
    if (lengthBytes === 0) throw cursor.error('ERR_WIRE_VALUE', 'Cannot read block status: an extent of 0 bytes');
    extents.push({ lengthBytes, flags: cursor.u32('extent flags') });
  }
  cursor.end();
  return { contextId, extents };
}

export interface FitOptions {
  /** Length of the request, in `bytes`: the reply covers no more */
  readonly lengthBytes: number;
  readonly maxExtents: number;
  /** Every length but the last of the disk must be a multiple of this, in `bytes` */
  readonly minimumBlockBytes: number;
}

/**
 * Makes a list of extents fit for a reply: neighbours of one state merged, no zero lengths, not past the request,
 * not more than `maxExtents`, whole blocks (a block that is partly data is data: flags of both, combined by AND).
 * Extent arithmetic in 32 bits is what CVE-2025-47711 and CVE-2025-47712 were; here lengths are checked doubles.
 */
export function fitExtents(extents: Iterable<Extent>, options: FitOptions): Extent[] {
  const { lengthBytes: limit, maxExtents, minimumBlockBytes: block } = options;
  const fitted: { lengthBytes: number; flags: number }[] = [];
  let covered = 0;
  /** Flags of the block that is not whole yet */
  let partFlags = 0;
  let part = 0;
  const add = (lengthBytes: number, flags: number): boolean => {
    const last = fitted.at(-1);
    if (last !== undefined && last.flags === flags) last.lengthBytes += lengthBytes;
    else if (fitted.length === maxExtents) return false;
    else fitted.push({ lengthBytes, flags });
    return true;
  };
  for (const extent of extents) {
    if (!Number.isSafeInteger(extent.lengthBytes) || extent.lengthBytes < 0) {
      throw new RangeError(`Cannot send an extent of ${extent.lengthBytes} bytes`);
    }
    let left = Math.min(extent.lengthBytes, limit - covered);
    covered += left;
    if (part > 0 && left > 0) {
      const fill = Math.min(block - part, left);
      partFlags &= extent.flags;
      part += fill;
      left -= fill;
      if (part === block) {
        if (!add(block, partFlags)) return fitted;
        part = 0;
      }
    }
    const rest = left % block;
    if (left - rest > 0 && !add(left - rest, extent.flags)) return fitted;
    if (rest > 0) {
      part = rest;
      partFlags = extent.flags;
    }
    if (covered === limit) break;
  }
  // What is left of the request's last block: the disk's end, since requests are whole blocks.
  if (part > 0) add(part, partFlags);
  return fitted;
}
