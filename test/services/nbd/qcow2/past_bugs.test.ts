import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import test, { type ExecutionContext } from 'ava';
import { WireError } from '../../../../protocols/bytes/mod.ts';
import { type DiskImage, ImageError, openImage, resolveChain } from '../../../../services/nbd/images/mod.ts';
import {
  checkFile,
  createQcow2,
  emptyImage,
  type ImageFile,
  inspectQcow2,
  Qcow2Image,
} from '../../../../services/nbd/images/qcow2/mod.ts';
import { emptyVhd, openVhdFile } from '../../../../services/nbd/images/vhd/mod.ts';
import { openVhdxFile } from '../../../../services/nbd/images/vhdx/mod.ts';
import { emptyVmdk, openVmdkFile } from '../../../../services/nbd/images/vmdk/mod.ts';
import { collectGarbage } from '../../../fixtures/collect_garbage.ts';
import { LogImageFile } from '../../../fixtures/log_image_file.ts';
import { VHDX_AT, vhdxImage, withCrc } from '../../../fixtures/vhdx_image.ts';

// What went wrong in other people's image code, replayed here: sizes that overflow, names inside images that are
// followed, formats that are guessed.

const directory = mkdtempSync(join(tmpdir(), 'caisson-past-'));
test.after.always(() => rmSync(directory, { recursive: true, force: true }));
const MAIN = new URL('../../../../cli/main.ts', import.meta.url).pathname;
const caisson = (...args: string[]) =>
  spawnSync(process.execPath, [MAIN, ...args], { encoding: 'utf8', cwd: directory, timeout: 60_000 });

function vhd(): Uint8Array {
  const parts = emptyVhd({ sizeBytes: 8 << 20, forceSize: true });
  const bytes = new Uint8Array(Math.max(...parts.map((part) => part.offset + part.bytes.length)));
  for (const part of parts) bytes.set(part.bytes, part.offset);
  return bytes;
}

/** The checksum of a structure of VHD. */
function vhdChecksum(bytes: Uint8Array, from: number, length: number, at: number): void {
  const view = new DataView(bytes.buffer, from, length);
  view.setUint32(at, 0);
  let sum = 0;
  for (let index = 0; index < length; index++) sum += view.getUint8(index);
  view.setUint32(at, ~sum >>> 0);
}

interface Format {
  readonly name: string;
  readonly make: () => Uint8Array;
  /** Where its sizes and offsets stand, from and to, in `bytes` */
  readonly fields: readonly [number, number][];
  readonly littleEndian: boolean;
  /** Puts checksums right again, as a careful attacker does */
  readonly mend: (bytes: Uint8Array) => void;
  readonly open: (file: ImageFile, readOnly: boolean) => Promise<DiskImage>;
}
const formats: readonly Format[] = [
  {
    name: 'qcow2',
    littleEndian: false,
    make: () => emptyImage({ sizeBytes: 64 << 20 }),
    fields: [[4, 112]],
    mend: () => {},
    open: (file, readOnly) => Qcow2Image.openFile(file, { readOnly }),
  },
  {
    name: 'VHD',
    littleEndian: false,
    make: vhd,
    fields: [
      [16, 84],
      [512, 564],
    ],
    mend: (bytes) => {
      bytes.copyWithin(bytes.length - 512, 0, 512);
      vhdChecksum(bytes, 512, 1024, 36);
      vhdChecksum(bytes, 0, 512, 64);
      vhdChecksum(bytes, bytes.length - 512, 512, 64);
    },
    open: (file, readOnly) => openVhdFile(file, { readOnly }),
  },
  {
    name: 'VHDX',
    littleEndian: true,
    make: () => vhdxImage(),
    fields: [
      [VHDX_AT.headers[0] + 64, VHDX_AT.headers[0] + 80],
      [VHDX_AT.metadata + 8, VHDX_AT.metadata + 64],
      [VHDX_AT.metadata + (64 << 10), VHDX_AT.metadata + (64 << 10) + 48],
    ],
    mend: (bytes) => {
      for (const at of VHDX_AT.headers) withCrc(bytes.subarray(at, at + 4096));
    },
    open: (file) => openVhdxFile(file, { readOnly: true }),
  },
  {
    name: 'VMDK',
    littleEndian: true,
    make: () => emptyVmdk({ sizeBytes: 40 << 20 }, 'x.vmdk'),
    fields: [[4, 80]],
    mend: () => {},
    open: (file, readOnly) => openVmdkFile(file, undefined, { readOnly }),
  },
];

/** Memory of this thread, what nothing refers to any more included, in `bytes`: test files share a process and its RSS */
function usedBytes(): number {
  const { heapUsed, external } = process.memoryUsage();
  return heapUsed + external;
}

async function survives(t: ExecutionContext, format: Format, bytes: Uint8Array, what: string): Promise<boolean> {
  const before = process.threadCpuUsage();
  let opened = false;
  for (const readOnly of [true, false]) {
    try {
      const image = await format.open(new LogImageFile(bytes), readOnly);
      opened = true;
      await image.read(0, new Uint8Array(Math.min(4096, image.sizeBytes)));
      if (image.sizeBytes > 0) await image.blockStatus(0, image.sizeBytes, 16);
      if (!image.readOnly && image.sizeBytes >= 4096) {
        await image.write(0, new Uint8Array(4096).fill(1));
        await image.flush();
      }
      await image.close();
    } catch (error) {
      if (!(error instanceof WireError || error instanceof ImageError)) t.fail(`${what}: ${(error as Error).stack}`);
    }
  }
  const { user, system } = process.threadCpuUsage(before);
  if (user + system > 2_000_000) t.fail(`${what}: ${(user + system) / 1e6} s`);
  return opened;
}

for (const format of formats) {
  test.serial(
    `CVE-2014-0142, CVE-2014-0143, CVE-2014-0144, CVE-2014-0145, CVE-2014-0146, CVE-2014-0147, CVE-2014-0148: any size or offset of ${format.name} at its extremes costs little`,
    async (t) => {
      t.timeout(120_000);
      const made = format.make();
      t.true(await survives(t, format, made, 'as it is made'));
      collectGarbage();
      const before = usedBytes();
      let most = 0;
      for (const [from, to] of format.fields) {
        for (let at = from; at < to; at += 4) {
          for (const value of [0, 1, 0x1000, 0x7fff_ffff, 0x8000_0000, 0xffff_fe00, 0xffff_ffff]) {
            const bytes = made.slice();
            new DataView(bytes.buffer).setUint32(at, value, format.littleEndian);
            format.mend(bytes);
            await survives(t, format, bytes, `${format.name} at ${at}: ${value}`);
          }
          most = Math.max(most, usedBytes() - before);
          // What counts is what an image takes, not how long what it took lies about
          collectGarbage();
        }
      }
      t.true(most < 256 << 20, `${most} bytes`);
    },
  );
}

test('CVE-2014-0222, CVE-2014-0223: qcow of version 1 is refused, whatever its tables claim', async (t) => {
  for (const [l2Bits, size] of [
    [0xff, 1n << 63n],
    [0, 0n],
    [16, (1n << 64n) - 1n],
  ] as const) {
    const bytes = new Uint8Array(4096);
    const view = new DataView(bytes.buffer);
    view.setUint32(0, 0x5146_49fb);
    view.setUint32(4, 1);
    view.setBigUint64(24, size);
    bytes[32] = 12;
    bytes[33] = l2Bits;
    const opening = Qcow2Image.openFile(new LogImageFile(bytes), { readOnly: true });
    await t.throwsAsync(opening, { instanceOf: WireError, message: /version 1, expected 2 or 3/ });
  }
});

const NAMES = [
  'json:{"driver":"nbd"}',
  'nbd://localhost/',
  '/etc/passwd',
  '../outside.raw',
  'self.qcow2',
  'fat:rw:/tmp',
];
for (const name of NAMES) {
  test(`CVE-2024-4467, CVE-2024-32498: no data file is opened on the word of the image: ${name}`, async (t) => {
    const root = mkdtempSync(join(directory, 'root-'));
    const path = join(root, 'self.qcow2');
    for (const raw of [false, true]) {
      await createQcow2(path, { sizeBytes: 1 << 20, dataFile: { file: name, raw } });
      const before = readFileSync(path);
      t.like(await inspectQcow2(path), { header: { dataFile: name } });
      for (const readOnly of [true, false]) {
        await t.throwsAsync(openImage({ path, format: 'qcow2' }, { readOnly }), { message: /external file/ });
      }
      const chain = { code: 'EINVAL', message: /names a protocol|not inside the folder|comes twice|ENOENT/ };
      await t.throwsAsync(resolveChain(path, 'qcow2', { root }), chain);
      t.deepEqual(readFileSync(path), before);
      rmSync(path);
    }
  });
}

// What it counts is the whole thread's: no other test may run beside it.
test.serial(
  'CVE-2015-5162: a small file that claims a huge disk costs little to look at, to check and to map',
  async (t) => {
    const path = join(directory, 'huge.qcow2');
    // 2 MiB clusters: an L1 table of 32 KiB maps two petabytes.
    await createQcow2(path, { sizeBytes: 2 ** 51, clusterBytes: 2 << 20 });
    const bytes = readFileSync(path);
    const started = process.threadCpuUsage();
    const before = usedBytes();
    t.is((await inspectQcow2(path)).header.sizeBytes, 2 ** 51);
    t.like(await checkFile(new LogImageFile(bytes)), { corruptions: 0, leaks: 0 });
    const image = await Qcow2Image.open(path, { readOnly: true });
    const extents = await image.blockStatus(0, 2 ** 51, 100_000);
    t.true(extents.length < 100_000);
    await image.close();
    const { user, system } = process.threadCpuUsage(started);
    t.true(user + system < 2_000_000, `${user + system} µs`);
    const grown = usedBytes() - before;
    t.true(grown < 256 << 20, `${grown} bytes`);
  },
);

test('CVE-2026-24708: a raw disk to which a guest gave a header stays raw, and nothing guesses what it is', async (t) => {
  const path = join(directory, 'guest.raw');
  writeFileSync(path, '');
  truncateSync(path, 1 << 20);
  const source = { path, format: 'raw' } as const;
  const disk = await openImage(source, { readOnly: false });
  await disk.write(
    0,
    emptyImage({ sizeBytes: 1 << 30, backing: { file: '/etc/passwd', format: 'raw' } }).subarray(0, 512),
  );
  await disk.flush();
  await disk.close();
  const again = await openImage(source, { readOnly: true });
  t.is(again.sizeBytes, 1 << 20);
  await again.close();
  for (const args of [
    ['run', '-kernel', 'builtin:firmware', '-drive', `file=${path}`],
    ['nbd', '-k', join(directory, 'n.sock'), path],
    ['img', 'info', path],
    ['img', 'convert', '-O', 'raw', path, join(directory, 'out.raw')],
    ['img', 'compare', path, path],
    ['img', 'resize', path, '2M'],
  ]) {
    const { status, stderr } = caisson(...args);
    t.not(status, 0, args.join(' '));
    t.regex(stderr, /never guessed|format is not given/, args.join(' '));
  }
  const info = caisson('img', 'info', '-f', 'raw', '--output=json', path);
  t.is(JSON.parse(info.stdout)['virtual-size'], 1 << 20);
});
