import { Cursor, WireError, Writer } from '../bytes/mod.ts';
import { tableOffset } from './header.ts';
import type { Qcow2Header } from './header_layout.ts';
import { QCOW2_LIMITS } from './limits.ts';

export interface Qcow2Snapshot {
  readonly id: string;
  readonly name: string;
  readonly l1Offset: number;
  readonly l1Entries: number;
  /** Seconds and nanoseconds since 1970 */
  readonly dateSeconds: number;
  readonly dateNanoseconds: number;
  /** Guest run time, in nanoseconds */
  readonly vmClock: bigint;
  /** In `bytes` */
  readonly vmStateBytes: bigint;
  /** Of the disk when the snapshot was taken, in `bytes` */
  readonly diskBytes: bigint;
  /** As it stands in the file: text that is not UTF-8 is kept when the table is written */
  readonly raw: {
    readonly id: Uint8Array;
    readonly name: Uint8Array;
    /** Behind the sizes: the count of instructions in 8 bytes, and what nobody knows */
    readonly furtherExtra: Uint8Array;
    /** Version 3 has to have the sizes of VM state and disk in each entry, and this one has not */
    readonly incomplete: boolean;
  };
}

/** Of the extra data: the VM state's size and the disk's, in `bytes` */
const SIZES_BYTES = 16;
const ICOUNT_BYTES = 8;
/** "icount: -1 is invalid" */
const NO_ICOUNT = new Uint8Array(ICOUNT_BYTES).fill(0xff);

/**
 * Decodes the snapshot table; `bytes` starts at it and may go on behind it (its length stands nowhere).
 * Gives the snapshots and the table's length, in `bytes`. @throws WireError
 */
export function decodeSnapshotTable(
  bytes: Uint8Array,
  header: Qcow2Header,
  fileBytes: number,
): { snapshots: Qcow2Snapshot[]; lengthBytes: number } {
  const cursor = new Cursor(bytes, 'qcow2 snapshot table');
  const snapshots: Qcow2Snapshot[] = [];
  for (let index = 0; index < header.snapshotCount; index++) {
    const l1Offset = cursor.u64('l1_table_offset');
    const l1Entries = cursor.u32('l1_size');
    const idBytes = cursor.u16('id_str_size');
    const nameBytes = cursor.u16('name_size');
    const dateSeconds = cursor.u32('date_sec');
    const dateNanoseconds = cursor.u32('date_nsec');
    const vmClock = cursor.u64('vm_clock_nsec');
    const shortVmState = cursor.u32('vm_state_size');
    const extraBytes = cursor.u32('extra_data_size');
    if (extraBytes > QCOW2_LIMITS.snapshotExtraBytes) {
      throw bad(`extra data of ${extraBytes} bytes, limit is ${QCOW2_LIMITS.snapshotExtraBytes}`);
    }
    const extra = new Cursor(cursor.bytes(extraBytes, 'extra data'), 'qcow2 snapshot extra data');
    const vmStateBytes = extraBytes >= 8 ? extra.u64('vm_state_size') : BigInt(shortVmState);
    const diskBytes = extraBytes >= 16 ? extra.u64('disk_size') : BigInt(header.sizeBytes);
    const furtherExtra = extra.rest().slice();
    const rawId = cursor.bytes(idBytes, 'id').slice();
    const rawName = cursor.bytes(nameBytes, 'name').slice();
    cursor.skip(Math.min(-cursor.offset & 7, cursor.remaining), 'padding');
    if (l1Entries > QCOW2_LIMITS.l1Bytes / 8)
      throw bad(`L1 table of ${l1Entries} entries, limit is ${QCOW2_LIMITS.l1Bytes / 8}`);
    const at = tableOffset(l1Offset, l1Entries * 8, `L1 table of snapshot ${index}`, header.clusterBytes, fileBytes);
    snapshots.push({
      id: printable(rawId),
      name: printable(rawName),
      l1Offset: at,
      l1Entries,
      dateSeconds,
      dateNanoseconds,
      vmClock,
      vmStateBytes,
      diskBytes,
      raw: { id: rawId, name: rawName, furtherExtra, incomplete: header.version === 3 && extraBytes < SIZES_BYTES },
    });
  }
  return { snapshots, lengthBytes: cursor.offset };
}

/** Encodes a snapshot table, each entry with the sizes of VM state and disk and a count of instructions, as QEMU does. */
export function encodeSnapshotTable(snapshots: readonly Qcow2Snapshot[]): Uint8Array<ArrayBuffer> {
  const out = new Writer();
  for (const snapshot of snapshots) {
    const { raw } = snapshot;
    const further = raw.furtherExtra.length < ICOUNT_BYTES ? NO_ICOUNT : raw.furtherExtra;
    out.u64(BigInt(snapshot.l1Offset)).u32(snapshot.l1Entries);
    out.u16(raw.id.length).u16(raw.name.length);
    out.u32(snapshot.dateSeconds).u32(snapshot.dateNanoseconds).u64(snapshot.vmClock);
    // The short field is for readers of version 2; the extra data counts where it is there.
    out.u32(snapshot.vmStateBytes > 0xffff_ffffn ? 0 : Number(snapshot.vmStateBytes));
    out.u32(SIZES_BYTES + further.length);
    out.u64(snapshot.vmStateBytes).u64(snapshot.diskBytes).bytes(further);
    out
      .bytes(raw.id)
      .bytes(raw.name)
      .zeroes(-out.length & 7);
  }
  return out.finish();
}

/** Names of a snapshot are bytes, UTF-8 by custom: what is not becomes U+FFFD, and the image stays usable. */
function printable(raw: Uint8Array): string {
  return new TextDecoder('utf-8').decode(raw);
}

function bad(found: string): WireError {
  return new WireError('ERR_WIRE_LIMIT', `Cannot read the snapshot table: ${found}`, {
    message: 'qcow2 snapshot table',
  });
}
