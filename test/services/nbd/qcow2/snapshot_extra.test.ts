import test from 'ava';
import { decodeHeader, decodeSnapshotTable } from '../../../../protocols/qcow2/mod.ts';
import {
  amendQcow2,
  checkFile,
  createSnapshot,
  emptyImage,
  Qcow2Image,
} from '../../../../services/nbd/images/qcow2/mod.ts';
import { LogImageFile } from '../../../fixtures/log_image_file.ts';

const MIB = 1 << 20;

/** Entries of the snapshot table in a file, and how much extra data each has, in `bytes` */
function entries(file: LogImageFile): { names: string[]; extra: number[] } {
  const bytes = file.contents;
  const header = decodeHeader(bytes, bytes.length);
  const table = bytes.subarray(header.snapshotsOffset);
  const { snapshots } = decodeSnapshotTable(table, header, bytes.length);
  const view = new DataView(table.buffer, table.byteOffset);
  const extra: number[] = [];
  for (let at = 0; extra.length < snapshots.length; ) {
    const bytesOfExtra = view.getUint32(at + 36);
    extra.push(bytesOfExtra);
    at += Math.ceil((40 + bytesOfExtra + view.getUint16(at + 12) + view.getUint16(at + 14)) / 8) * 8;
  }
  return { names: snapshots.map(({ name }) => name), extra };
}

/** Version 2 with snapshots "a" and "b", of which the first has no extra data and the second half of it: as old QEMUs wrote. */
async function old(): Promise<LogImageFile> {
  const file = new LogImageFile(emptyImage({ sizeBytes: MIB, clusterBytes: 4096, version: 2 }));
  const image = await Qcow2Image.openFile(file, { readOnly: false });
  for (const name of ['a', 'b']) {
    await image.write(0, new Uint8Array(4096).fill(name.charCodeAt(0)));
    await createSnapshot(image, name);
  }
  await image.close();
  const bytes = file.contents;
  const { snapshotsOffset } = decodeHeader(bytes, bytes.length);
  const whole = bytes.slice(snapshotsOffset, snapshotsOffset + 200);
  // Each entry: 40 bytes, 24 of extra data, an id and a name of a letter each, padding to 72.
  const view = new DataView(whole.buffer);
  const short = [0, 8].flatMap((extraBytes, index) => {
    view.setUint32(index * 72 + 36, extraBytes);
    const entry = [...whole.subarray(index * 72, index * 72 + 40), ...new Uint8Array(extraBytes)];
    entry.push(...whole.subarray(index * 72 + 64, index * 72 + 66));
    while (entry.length % 8 !== 0) entry.push(0);
    return entry;
  });
  const changed = bytes.slice();
  changed.fill(0, snapshotsOffset, snapshotsOffset + 200);
  changed.set(short, snapshotsOffset);
  return new LogImageFile(changed);
}

test('Q12 a new snapshot has the sizes and the count of instructions that QEMU gives each', async (t) => {
  const file = new LogImageFile(emptyImage({ sizeBytes: MIB, clusterBytes: 4096 }));
  const image = await Qcow2Image.openFile(file, { readOnly: false });
  await createSnapshot(image, 'new');
  await image.close();
  t.deepEqual(entries(file), { names: ['new'], extra: [24] });
});

test('Q12 Q17 entries of version 2 get what version 3 wants of them when the image is amended', async (t) => {
  const file = await old();
  t.deepEqual(entries(file), { names: ['a', 'b'], extra: [0, 8] });
  t.is((await checkFile(file)).corruptions, 0, 'version 2 does not want it');
  const image = await Qcow2Image.openFile(file, { readOnly: false });
  await amendQcow2(image, { version: 3 });
  await image.close();
  t.deepEqual(entries(file), { names: ['a', 'b'], extra: [24, 24] });
  const { corruptions, leaks } = await checkFile(file);
  t.deepEqual({ corruptions, leaks }, { corruptions: 0, leaks: 0 });
});

test('Q12 Q17 check finds and mends entries of version 3 that lack their sizes', async (t) => {
  const file = await old();
  const bytes = file.contents.slice();
  const view = new DataView(bytes.buffer);
  // Version 3, a header of 104 bytes, refcounts of 16 bits: all that an old tool would change
  view.setUint32(4, 3);
  view.setUint32(96, 4);
  view.setUint32(100, 104);
  const botched = new LogImageFile(bytes);
  const found = await checkFile(botched);
  t.is(found.corruptions, 2);
  t.deepEqual(found.problems, [
    'ERROR snapshot table entry 0 is incomplete',
    'ERROR snapshot table entry 1 is incomplete',
  ]);
  const mended = await checkFile(botched, 'all');
  t.like(mended, { corruptions: 0, corruptionsFixed: 2, leaks: 0 });
  t.regex(mended.problems[0]!, /^Repairing snapshot table entry 0/);
  t.deepEqual(entries(botched), { names: ['a', 'b'], extra: [24, 24] });
  for (const [name, byte] of [
    ['a', 0x61],
    ['b', 0x62],
  ] as const) {
    const past = await Qcow2Image.openFile(new LogImageFile(botched.contents), { readOnly: true, snapshot: name });
    const into = new Uint8Array(4096);
    await past.read(0, into);
    t.true(into.every((each) => each === byte));
    await past.close();
  }
});
