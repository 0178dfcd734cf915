import { writeFileSync } from 'node:fs';
import test from 'ava';
import { Qcow2Image } from '../../services/nbd/images/qcow2/mod.ts';
import {
  CLUSTER,
  COMPRESSED,
  COPIED,
  DATA,
  goodQcow2,
  L1,
  L2,
  REFCOUNT_BLOCK,
  REFCOUNT_TABLE,
} from '../../test/fixtures/good_qcow2.ts';
import { LogImageFile } from '../../test/fixtures/log_image_file.ts';
import { hasPrograms, run, scratch } from '../nbd/peers.ts';

const files = scratch();
test.after.always(() => files.remove());

const cases: readonly [name: string, change: (view: DataView) => void][] = [
  ['good', () => {}],
  ['version 4', (v) => v.setUint32(4, 4)],
  ['header_length 0', (v) => v.setUint32(100, 0)],
  ['header_length above a cluster', (v) => v.setUint32(100, CLUSTER + 8)],
  ['cluster_bits 8', (v) => v.setUint32(20, 8)],
  ['cluster_bits 22', (v) => v.setUint32(20, 22)],
  ['refcount_order 7', (v) => v.setUint32(96, 7)],
  ['l1_size 0', (v) => v.setUint32(36, 0)],
  ['l1_size 2^31', (v) => v.setUint32(36, 2 ** 31)],
  ['L1 table unaligned', (v) => v.setBigUint64(40, BigInt(L1 + 512))],
  ['L1 table past the end', (v) => v.setBigUint64(40, BigInt(CLUSTER) * 1000n)],
  ['refcount_table_clusters 2^31', (v) => v.setUint32(56, 2 ** 31)],
  ['refcount table unaligned', (v) => v.setBigUint64(48, 1000n)],
  ['65 537 snapshots', (v) => v.setUint32(60, 65_537)],
  ['size 2^63-1', (v) => v.setBigUint64(24, 2n ** 63n - 1n)],
  ['crypt_method 3', (v) => v.setUint32(32, 3)],
  ['extension of 2^32-1 bytes', (v) => v.setBigUint64(112, 0x1234_ffff_ffffn)],
  ['unknown incompatible bit', (v) => v.setBigUint64(72, 1n << 40n)],
  ['compression type 2', (v) => v.setUint8(104, 2)],
  ['size of 1000 bytes', (v) => v.setBigUint64(24, 1000n)],
  ['L1 entry to the L1 table', (v) => v.setBigUint64(L1, BigInt(L1) | COPIED)],
  ['L1 entry to the refcount table', (v) => v.setBigUint64(L1, BigInt(REFCOUNT_TABLE) | COPIED)],
  ['L2 entry to its own table', (v) => v.setBigUint64(L2, BigInt(L2) | COPIED)],
  ['L2 entry to a refcount block', (v) => v.setBigUint64(L2, BigInt(REFCOUNT_BLOCK) | COPIED)],
  ['L2 entry unaligned', (v) => v.setBigUint64(L2, BigInt(DATA + 512) | COPIED)],
  ['L2 entry with reserved bits', (v) => v.setBigUint64(L2, BigInt(DATA) | COPIED | (1n << 57n))],
  ['L2 entry past the end', (v) => v.setBigUint64(L2, (BigInt(CLUSTER) * 1000n) | COPIED)],
  ['compressed entry past the end', (v) => v.setBigUint64(L2, BigInt(CLUSTER * 90) | COMPRESSED)],
  ['refcount block in the L1 table', (v) => v.setBigUint64(REFCOUNT_TABLE, BigInt(L1))],
  ['refcount block unaligned', (v) => v.setBigUint64(REFCOUNT_TABLE, BigInt(REFCOUNT_BLOCK) + 512n)],
];

for (const [name, change] of cases) {
  test(`Q4 Q16 the same verdict as qemu-img, bad where it says bad: ${name}`, async (t) => {
    if (!hasPrograms(t, 'qemu-img')) return;
    const { bytes, view } = goodQcow2({ clusters: 6, extensions: true });
    change(view);
    const path = files.path(`${name.replace(/\W/g, '-')}.qcow2`);
    writeFileSync(path, bytes);
    const { status, stdout } = await run('qemu-img', ['check', '-f', 'qcow2', '--output=json', path]);
    // 0 no fault, 1 cannot be checked, 2 corrupt, 3 leaks
    const qemuSaysBad = status === 1 || status === 2;
    let oursSaysBad = false;
    try {
      const image = await Qcow2Image.openFile(new LogImageFile(bytes), { readOnly: false });
      await image.read(0, new Uint8Array(Math.min(512, image.sizeBytes)));
    } catch {
      oursSaysBad = true;
    }
    t.is(oursSaysBad, qemuSaysBad, `qemu-img: ${status} ${stdout}`);
  });
}
