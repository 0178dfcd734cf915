import { gunzipSync, gzipSync, zstdCompressSync, zstdDecompressSync } from 'node:zlib';
import test from 'ava';
import { type BootOptions, planBoot } from '../../../emulator/machine/boot.ts';
import { BootError, type BootErrorCode } from '../../../emulator/machine/boot_error.ts';
import { buildDeviceTree } from '../../../emulator/machine/device_tree.ts';
import { readAll } from '../../../protocols/bytes/mod.ts';
import { decodeFdt, encodeFdt, type FdtNode } from '../../../protocols/fdt/mod.ts';
import { sampleElf, sampleImage } from '../../macros/programs.ts';

const MIB = 1024 * 1024;
const decompressors = {
  gunzip: (bytes: Uint8Array, maxBytes: number) => gunzipSync(bytes, { maxOutputLength: maxBytes }),
  unzstd: (bytes: Uint8Array, maxBytes: number) => zstdDecompressSync(bytes, { maxOutputLength: maxBytes }),
};
const base: BootOptions = { ramBytes: 256 * MIB, harts: 2, bios: 'builtin', kernel: sampleImage(), decompressors };
const code = (address: number, bytes = 16, memoryBytes = bytes) => ({
  physical: address,
  bytes: new Uint8Array(bytes).fill(0x13),
  memoryBytes,
});

function chosen(blob: Uint8Array): FdtNode {
  return decodeFdt(blob).root.find('/chosen')!;
}

function refuses(
  t: { throws: (run: () => void, expected: object, message?: string) => unknown },
  what: string,
  expected: BootErrorCode,
  options: Partial<BootOptions>,
) {
  t.throws(() => planBoot({ ...base, ...options }), { instanceOf: BootError, code: expected }, what);
}

test('planBoot() with the built-in SBI starts the kernel in S-mode, placed as QEMU places it', (t) => {
  const plan = planBoot({
    ...base,
    initrd: new Uint8Array(1000),
    append: 'console=ttyS0',
    rngSeed: new Uint8Array(32).fill(7),
  });
  t.deepEqual(plan.start, { privilege: 'S', pc: 0x8020_0000, a0: 0, a1: 0x8fe0_0000 });
  t.deepEqual(
    plan.segments.map(({ name, address }) => [name, address]),
    [
      ['kernel', 0x8020_0000],
      ['initrd', 0x8820_0000],
      ['device tree', 0x8fe0_0000],
    ],
  );
  const node = chosen(plan.dtb.bytes);
  t.deepEqual(node.getText('bootargs'), ['console=ttyS0']);
  t.deepEqual(node.getCells('linux,initrd-start'), [0, 0x8820_0000]);
  t.deepEqual(node.getCells('linux,initrd-end'), [0, 0x8820_03e8]);
  t.is(node.properties.get('rng-seed')?.length, 32);
  t.is(plan.segments[0]?.memoryBytes, 4096 * 4, 'bss is part of the kernel');
});

test('planBoot() with firmware starts it in M-mode and tells fw_dynamic where the kernel is', (t) => {
  const plan = planBoot({ ...base, bios: new Uint8Array(0x1c280).fill(1) });
  t.deepEqual(plan.start, { privilege: 'M', pc: 0x1000, a0: 0, a1: 0x8fe0_0000 });
  const rom = new DataView(plan.rom.buffer, plan.rom.byteOffset);
  t.is(rom.getBigUint64(0x18, true), 0x8000_0000n);
  t.is(rom.getBigUint64(0x20, true), 0x8fe0_0000n);
  t.is(rom.getBigUint64(0x28, true), 0x4942_534fn);
  t.is(rom.getBigUint64(0x30, true), 2n);
  t.is(rom.getBigUint64(0x38, true), 0x8020_0000n);
  t.is(rom.getBigUint64(0x40, true), 1n);
});

test('planBoot() puts the kernel behind a firmware that is larger than 2 MiB, and runs firmware alone', (t) => {
  t.is(planBoot({ ...base, bios: new Uint8Array(3 * MIB) }).kernel?.address, 0x8040_0000);
  const alone = planBoot({ ramBytes: 64 * MIB, harts: 1, bios: new Uint8Array(64) });
  t.is(alone.kernel, undefined);
  t.is(new DataView(alone.rom.buffer, alone.rom.byteOffset).getBigUint64(0x38, true), 0n);
});

test('planBoot() with -bios none starts an ELF in M-mode at the start of RAM, as QEMU does', (t) => {
  const startOf = (kernel: Uint8Array) => {
    const plan = planBoot({ ...base, bios: 'none', kernel });
    return new DataView(plan.rom.buffer, plan.rom.byteOffset).getBigUint64(0x18, true);
  };
  t.is(startOf(sampleElf([code(0x8000_0000)])), 0x8000_0000n);
  t.is(startOf(sampleElf([code(0x8000_0000)], 0x8000_0008n)), 0x8000_0000n);
  t.is(startOf(sampleElf([code(0x8010_0000)], 0x8010_0008n)), 0x8010_0008n, 'nothing at the start: the entry');
  t.is(startOf(new Uint8Array(16).fill(0x13)), 0x8000_0000n, 'flat binary');
  const plan = planBoot({ ...base, bios: 'none', kernel: sampleElf([code(0x8000_0000)]) });
  t.is(plan.start.privilege, 'M');
});

test('planBoot() drops the page of headers that linkers put below RAM', (t) => {
  const file = sampleElf([{ physical: 0x7fff_f000, bytes: new Uint8Array(0x1100).fill(9) }], 0x8000_0000n);
  new DataView(file.buffer).setBigUint64(64 + 8, 0n, true);
  const plan = planBoot({ ...base, bios: 'none', kernel: file });
  const kernel = plan.segments.find(({ name }) => name === 'kernel')!;
  t.is(kernel.address, 0x8000_0000);
  t.is(kernel.memoryBytes, 0x100);
  t.deepEqual([...readAll(kernel.bytes)], [...file.subarray(0x1000, 0x1100)]);
});

test('planBoot() takes kernels compressed by gzip, zstd and as EFI zboot', (t) => {
  const image = sampleImage(8192);
  const zipped = gzipSync(image);
  const zboot = new Uint8Array(64 + zipped.length);
  zboot.set(new TextEncoder().encode('MZ\0\0zimg'));
  new DataView(zboot.buffer).setUint32(8, 64, true);
  new DataView(zboot.buffer).setUint32(12, zipped.length, true);
  zboot.set(new TextEncoder().encode('gzip'), 24);
  zboot.set(zipped, 64);
  for (const kernel of [zipped, zstdCompressSync(image), zboot]) {
    const plan = planBoot({ ...base, kernel });
    t.deepEqual([...readAll(plan.segments[0]!.bytes)], [...image]);
  }
});

/** A file whose reads are written down. */
function watched(bytes: Uint8Array, lengthBytes = bytes.length) {
  const reads: [offset: number, bytes: number][] = [];
  const read = (offset: number, into: Uint8Array) => {
    reads.push([offset, into.length]);
    into.set(bytes.subarray(offset, offset + into.length));
  };
  return { reads, open: () => ({ length: lengthBytes, read }) };
}

test('planBoot() reads headers of files, and nothing of what goes to RAM as it is', (t) => {
  const bytesRead = ({ reads }: ReturnType<typeof watched>) => reads.reduce((sum, [, bytes]) => sum + bytes, 0);
  const image = watched(sampleImage(2 * MIB));
  const initrd = watched(new Uint8Array(3 * MIB).fill(5));
  const plan = planBoot({ ...base, kernel: image, initrd });
  t.true(bytesRead(image) <= 256, `${bytesRead(image)}`);
  t.deepEqual(initrd.reads, []);
  t.is(plan.initrd?.bytes, 3 * MIB);
  const loaded = plan.segments.find(({ name }) => name === 'initrd')!;
  t.deepEqual([...readAll(loaded.bytes).subarray(-4)], [5, 5, 5, 5]);

  const program = sampleElf([code(0x8020_0000, MIB), code(0x8040_0000, 100, MIB)]);
  const elf = watched(program);
  const [text, data] = planBoot({ ...base, kernel: elf }).segments;
  t.true(bytesRead(elf) <= 64 * 5, `${bytesRead(elf)}`);
  t.deepEqual(readAll(text!.bytes), new Uint8Array(MIB).fill(0x13));
  t.deepEqual([data!.bytes.length, data!.memoryBytes], [100, MIB]);
  t.deepEqual(elf.reads.at(-1), [64 + 2 * 56, MIB]);
});

test('planBoot() refuses files by their size and headers, before anything else is read', (t) => {
  const elf = watched(sampleElf([code(0x9000_0000, MIB)]));
  refuses(t, 'ELF segment outside RAM', 'ERR_BOOT_SPACE', { kernel: elf });
  t.true(elf.reads.every(([, bytes]) => bytes <= 64));
  const overlap = watched(sampleElf([code(0x8020_0000, MIB), code(0x8020_0008)]));
  refuses(t, 'ELF segments over each other', 'ERR_BOOT_KERNEL', { kernel: overlap });
  t.true(overlap.reads.every(([, bytes]) => bytes <= 2 * 56));
  const huge = watched(gzipSync(sampleImage()), 2 ** 40);
  refuses(t, 'compressed, larger than RAM', 'ERR_BOOT_DECOMPRESS', { kernel: huge });
  t.true(huge.reads.every(([, bytes]) => bytes <= 64));
  refuses(t, 'flat, 1 TiB', 'ERR_BOOT_SPACE', { kernel: watched(new Uint8Array(64), 2 ** 40) });
  refuses(t, 'initrd of 1 TiB', 'ERR_BOOT_SPACE', { initrd: watched(new Uint8Array(64), 2 ** 40) });
});

test('planBoot() refuses a kernel that decompresses to more than RAM', (t) => {
  refuses(t, 'gzip bomb', 'ERR_BOOT_DECOMPRESS', { kernel: gzipSync(new Uint8Array(300 * MIB)) });
  refuses(t, 'zstd bomb', 'ERR_BOOT_DECOMPRESS', { kernel: zstdCompressSync(new Uint8Array(300 * MIB)) });
});

test('planBoot() refuses a kernel compressed in itself, damaged, or cut', (t) => {
  const zipped = gzipSync(sampleImage(8192));
  refuses(t, 'twice', 'ERR_BOOT_DECOMPRESS', { kernel: gzipSync(zipped) });
  refuses(t, 'cut', 'ERR_BOOT_DECOMPRESS', { kernel: zipped.subarray(0, zipped.length - 20) });
  refuses(t, 'damaged', 'ERR_BOOT_DECOMPRESS', {
    kernel: zipped.map((byte, index) => (index > 20 ? byte ^ 0x55 : byte)),
  });
  refuses(t, 'no decompressor', 'ERR_BOOT_DECOMPRESS', { kernel: zipped, decompressors: undefined });
  const zboot = new Uint8Array(64);
  zboot.set(new TextEncoder().encode('MZ\0\0zimg'));
  zboot.set(new TextEncoder().encode('gzip'), 24);
  new DataView(zboot.buffer).setUint32(8, 0xffff_ffff, true);
  refuses(t, 'zboot payload outside', 'ERR_BOOT_KERNEL', { kernel: zboot });
  zboot.set(new TextEncoder().encode('lzma'), 24);
  refuses(t, 'zboot by lzma', 'ERR_BOOT_KERNEL', { kernel: zboot });
});

test('planBoot() refuses kernels that are empty, cut, lying or for another machine', (t) => {
  refuses(t, 'empty', 'ERR_BOOT_KERNEL', { kernel: new Uint8Array(0) });
  refuses(t, 'ELF cut in its header', 'ERR_BOOT_KERNEL', { kernel: sampleElf([code(0x8020_0000)]).subarray(0, 40) });
  refuses(t, 'ELF cut in a segment', 'ERR_BOOT_KERNEL', { kernel: sampleElf([code(0x8020_0000)]).subarray(0, 130) });
  const x86 = sampleElf([code(0x8020_0000)]);
  x86[18] = 62;
  refuses(t, 'x86', 'ERR_BOOT_KERNEL', { kernel: x86 });
  refuses(t, 'overlapping segments', 'ERR_BOOT_KERNEL', { kernel: sampleElf([code(0x8020_0000), code(0x8020_0008)]) });
  refuses(t, 'Image that says less than it is', 'ERR_BOOT_KERNEL', { kernel: sampleImage(4096, 100) });
  refuses(t, 'entry outside', 'ERR_BOOT_KERNEL', { kernel: sampleElf([code(0x8020_0000)], 0x8030_0000n) });
  refuses(t, 'entry outside', 'ERR_BOOT_FIRMWARE', { bios: sampleElf([code(0x8000_0000)], 0n) });
});

test('planBoot() refuses what does not fit into RAM', (t) => {
  refuses(t, 'Image larger than RAM', 'ERR_BOOT_SPACE', { kernel: sampleImage(4096, 300 * MIB) });
  refuses(t, 'ELF below RAM', 'ERR_BOOT_SPACE', { kernel: sampleElf([code(0x1000)]) });
  refuses(t, 'ELF above RAM', 'ERR_BOOT_SPACE', { kernel: sampleElf([code(0x9000_0000)]) });
  refuses(t, 'ELF at 2^50', 'ERR_BOOT_SPACE', { kernel: sampleElf([code(2 ** 50)]) });
  refuses(t, 'bss beyond RAM', 'ERR_BOOT_SPACE', { kernel: sampleElf([code(0x8020_0000, 16, 2 ** 40)]) });
  refuses(t, 'initrd larger than RAM', 'ERR_BOOT_SPACE', { initrd: new Uint8Array(254 * MIB) });
  refuses(t, 'RAM of one page', 'ERR_BOOT_SPACE', { ramBytes: 4096 });
});

test('planBoot() refuses a kernel over the firmware, over the device tree, or under the initrd', (t) => {
  refuses(t, 'kernel over firmware', 'ERR_BOOT_OVERLAP', {
    bios: new Uint8Array(0x2_0000),
    kernel: sampleElf([code(0x8001_0000)]),
  });
  refuses(t, 'kernel over device tree', 'ERR_BOOT_OVERLAP', { kernel: sampleElf([code(0x8fe0_0000)]) });
  // A kernel whose bss is longer than the usual distance pushes the initrd up instead
  const plan = planBoot({ ...base, kernel: sampleImage(4096, 150 * MIB), initrd: new Uint8Array(10) });
  t.is(plan.initrd?.address, 0x8020_0000 + 150 * MIB);
});

test('planBoot() moves a large initrd down where QEMU’s place is too small', (t) => {
  const plan = planBoot({ ...base, initrd: new Uint8Array(200 * MIB) });
  t.is(plan.initrd?.address, 0x8020_4000);
});

test('planBoot() refuses options that cannot start', (t) => {
  refuses(t, 'nothing', 'ERR_BOOT_OPTIONS', { kernel: undefined });
  refuses(t, 'append without kernel', 'ERR_BOOT_OPTIONS', { bios: new Uint8Array(4), kernel: undefined, append: 'x' });
  refuses(t, 'initrd without kernel', 'ERR_BOOT_OPTIONS', {
    bios: new Uint8Array(4),
    kernel: undefined,
    initrd: new Uint8Array(4),
  });
  refuses(t, 'append too long', 'ERR_BOOT_OPTIONS', { append: 'x'.repeat(5000) });
  refuses(t, 'append with NUL', 'ERR_BOOT_OPTIONS', { append: 'a\0b' });
});

test('planBoot() uses a given device tree with /chosen updated', (t) => {
  const root = buildDeviceTree({ ramBytes: 128 * MIB, harts: 1 });
  root.child('mine').text('compatible', 'own');
  const dtb = encodeFdt({ root, reservations: [], bootCpu: 0 });
  const tree = decodeFdt(planBoot({ ...base, dtb, append: 'quiet' }).dtb.bytes);
  t.deepEqual(tree.root.find('/mine')?.getText('compatible'), ['own']);
  t.deepEqual(tree.root.find('/chosen')?.getText('bootargs'), ['quiet']);
});

test('planBoot() refuses device trees that are damaged or describe another machine', (t) => {
  const make = (change: (root: FdtNode) => void) => {
    const root = buildDeviceTree({ ramBytes: 128 * MIB, harts: 1 });
    change(root);
    return encodeFdt({ root, reservations: [], bootCpu: 0 });
  };
  const good = make(() => {});
  const memory = (root: FdtNode) => root.find('/memory@80000000')!;
  refuses(t, 'cut', 'ERR_BOOT_DTB', { dtb: good.subarray(0, 500) });
  refuses(t, 'empty', 'ERR_BOOT_DTB', { dtb: new Uint8Array(0) });
  refuses(t, 'too large', 'ERR_BOOT_DTB', { dtb: new Uint8Array(3 * MIB) });
  refuses(t, 'no harts', 'ERR_BOOT_DTB', { dtb: make((root) => void root.children.splice(1, 1)) });
  refuses(t, 'no memory', 'ERR_BOOT_DTB', { dtb: make((root) => void root.children.splice(0, 1)) });
  refuses(t, 'more memory than there is', 'ERR_BOOT_DTB', {
    dtb: make((root) => memory(root).cells64('reg', 0x8000_0000, 512 * MIB)),
  });
  refuses(t, 'memory elsewhere', 'ERR_BOOT_DTB', { dtb: make((root) => memory(root).cells64('reg', 0x1000, MIB)) });
  refuses(t, 'memory that wraps', 'ERR_BOOT_DTB', {
    dtb: make((root) => memory(root).cells('reg', 0xffff_ffff, 0xffff_f000, 0, 0x2000)),
  });
  refuses(t, 'half a range', 'ERR_BOOT_DTB', { dtb: make((root) => memory(root).cells('reg', 0, 0x8000_0000, 0)) });
  refuses(t, 'cells of absurd size', 'ERR_BOOT_DTB', { dtb: make((root) => root.cells('#address-cells', 1000)) });
});
