// Whole images with a few bytes changed where their tables are: what opens may be read or fail, but only with an error
// that says that the image is wrong. The checksums are left as they are half of the time, and made right the other half.

import test from 'ava';
import { WireError } from '../../../protocols/bytes/mod.ts';
import { type DiskImage, ImageError } from '../../../services/nbd/images/mod.ts';
import { emptyVhd, openVhdFile } from '../../../services/nbd/images/vhd/mod.ts';
import { openVhdxFile } from '../../../services/nbd/images/vhdx/mod.ts';
import { emptyVmdk, openVmdkFile } from '../../../services/nbd/images/vmdk/mod.ts';
import { LogImageFile, randomNumbers } from '../../fixtures/log_image_file.ts';
import { VHDX_AT, vhdxImage, vhdxLogEntry, withCrc } from '../../fixtures/vhdx_image.ts';

const MIB = 1 << 20;
const ROUNDS = 150;

/** A table of an image: where it is, how long, and how its checksum is made right. */
interface Area {
  readonly from: number;
  readonly bytes: number;
  readonly mend?: (image: Uint8Array) => void;
}

interface Subject {
  readonly name: string;
  readonly image: () => Uint8Array;
  readonly areas: readonly Area[];
  readonly open: (file: LogImageFile) => Promise<DiskImage>;
}

function vhdSum(image: Uint8Array, from: number, bytes: number, at: number): void {
  const part = image.subarray(from, from + bytes);
  const view = new DataView(part.buffer, part.byteOffset, bytes);
  view.setUint32(at, 0);
  view.setUint32(at, ~part.reduce((sum, byte) => sum + byte, 0) >>> 0);
}

function vhdImage(): Uint8Array {
  const bytes = new Uint8Array(2048 + 512 + 2 * MIB + 512);
  for (const { offset, bytes: part } of emptyVhd({ sizeBytes: 8 * MIB, forceSize: true })) bytes.set(part, offset);
  bytes.copyWithin(bytes.length - 512, 0, 512);
  new DataView(bytes.buffer).setUint32(1536, 4);
  return bytes;
}
const vhdFooter = vhdImage().length - 512;

function vmdkImage(): Uint8Array {
  const empty = emptyVmdk({ sizeBytes: 40 * MIB }, 'x.vmdk');
  const bytes = new Uint8Array(empty.length + 65_536);
  bytes.set(empty);
  const view = new DataView(bytes.buffer);
  const directory = view.getUint32(56, true) * 512;
  view.setUint32(view.getUint32(directory, true) * 512, empty.length / 512, true);
  return bytes;
}
const vmdkView = new DataView(vmdkImage().buffer);
const vmdkDirectory = vmdkView.getUint32(56, true) * 512;

const log = vhdxLogEntry(3, 0, [
  { offset: VHDX_AT.bat, data: new Uint8Array(4096).fill(6) },
  { offset: VHDX_AT.data, zeroBytes: 8192 },
]);
const crc = (from: number, bytes: number): Area => ({
  from,
  bytes: Math.min(bytes, 160),
  mend: (image) => withCrc(image.subarray(from, from + bytes)),
});

const subjects: readonly Subject[] = [
  {
    name: 'VHD',
    image: vhdImage,
    areas: [
      { from: vhdFooter, bytes: 90, mend: (image) => vhdSum(image, vhdFooter, 512, 64) },
      { from: 512, bytes: 80, mend: (image) => vhdSum(image, 512, 1024, 36) },
      { from: 1536, bytes: 16 },
    ],
    open: (file) => openVhdFile(file, { readOnly: true }),
  },
  {
    name: 'VHDX',
    image: () => vhdxImage(log),
    areas: [
      crc(VHDX_AT.headers[1], 4096),
      crc(VHDX_AT.regions[0], 64 << 10),
      crc(VHDX_AT.log, log.length),
      { from: VHDX_AT.bat, bytes: 16 },
      { from: VHDX_AT.metadata, bytes: 192 },
      { from: VHDX_AT.metadata + (64 << 10), bytes: 40 },
    ],
    open: (file) => openVhdxFile(file, { readOnly: true }),
  },
  {
    name: 'VMDK',
    image: vmdkImage,
    areas: [
      { from: 0, bytes: 80 },
      { from: 512, bytes: 300 },
      { from: vmdkDirectory, bytes: 8 },
      { from: vmdkView.getUint32(vmdkDirectory, true) * 512, bytes: 16 },
    ],
    open: (file) => openVmdkFile(file, undefined, { readOnly: true }),
  },
];

for (const [index, { name, image, areas, open }] of subjects.entries()) {
  test(`§8.3 ${name}: whatever bytes of the tables change, the image opens or is refused, and reads or fails`, async (t) => {
    const random = randomNumbers(100 + index);
    const counts = { refused: 0, failed: 0, read: 0 };
    const good = image();
    for (let round = 0; round < ROUNDS; round++) {
      const bytes = good.slice();
      const area = areas[random(areas.length)]!;
      for (let changes = 1 + random(3); changes > 0; changes--) bytes[area.from + random(area.bytes)] = random(256);
      if (random(2) === 0) area.mend?.(bytes);
      const file = new LogImageFile(bytes);
      try {
        const disk = await open(file);
        const into = new Uint8Array(4096);
        try {
          for (const at of [0, Math.floor(disk.sizeBytes / 2), disk.sizeBytes - 4096]) {
            if (at >= 0) await disk.read(at, into);
          }
          if (disk.sizeBytes > 0) await disk.blockStatus(0, Math.min(disk.sizeBytes, 2 ** 40), 100);
          counts.read++;
        } catch (error) {
          if (!(error instanceof ImageError || error instanceof WireError)) throw error;
          counts.failed++;
        }
        await disk.close();
      } catch (error) {
        if (!(error instanceof ImageError || error instanceof WireError)) throw error;
        counts.refused++;
      }
      t.true(file.closed, `${round}`);
      t.is(file.log.length, 0);
    }
    t.log(counts);
    // The changes reach all three: neither everything is refused at once, nor nothing.
    t.true(counts.refused > 5 && counts.read > 5 && counts.failed > 0, JSON.stringify(counts));
  });
}
