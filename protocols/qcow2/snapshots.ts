import { Cursor, WireError } from '../bytes/mod.ts';
import type { Qcow2Header } from './header.ts';
import { tableOffset } from './header.ts';
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
}

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
    const id = printable(cursor.bytes(idBytes, 'id'));
    const name = printable(cursor.bytes(nameBytes, 'name'));
    cursor.skip(Math.min(-cursor.offset & 7, cursor.remaining), 'padding');
    if (l1Entries > QCOW2_LIMITS.l1Bytes / 8)
      throw bad(`L1 table of ${l1Entries} entries, limit is ${QCOW2_LIMITS.l1Bytes / 8}`);
    const at = tableOffset(l1Offset, l1Entries * 8, `L1 table of snapshot ${index}`, header.clusterBytes, fileBytes);
    snapshots.push({
      id,
      name,
      l1Offset: at,
      l1Entries,
      dateSeconds,
      dateNanoseconds,
      vmClock,
      vmStateBytes,
      diskBytes,
    });
  }
  return { snapshots, lengthBytes: cursor.offset };
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
