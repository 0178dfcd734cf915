import { type ByteSource, byteSource, partOf, WireError } from '../../protocols/bytes/mod.ts';
import { decodeFdt, encodeFdt, type Fdt, type FdtNode } from '../../protocols/fdt/mod.ts';
import { BootError } from './boot_error.ts';
import { buildBootRom } from './boot_rom.ts';
import { buildDeviceTree, setChosen } from './device_tree.ts';
import { type Decompressors, openKernel, openProgram, type ProgramFile } from './kernel_file.ts';
import { BOOT_ROM, RAM_START } from './memory_map.ts';

const KIB = 1024;
const MIB = 1024 * KIB;

/** RV64 kernels start at a multiple of this (Documentation/arch/riscv/boot.rst, "Kernel location") */
const KERNEL_ALIGNMENT = 2 * MIB;
/** QEMU keeps this much of RAM for the device tree, at a multiple of 2 MiB near its end… */
const DTB_ROOM = 1 * MIB;
const DTB_ALIGNMENT = 2 * MIB;
/** …but below this, so that 32-bit addresses of it do not look negative */
const DTB_CEILING = 3072 * MIB;
/** And puts the initrd this far behind the kernel, or half of RAM if that is less */
const INITRD_DISTANCE = 128 * MIB;
const PAGE = 4 * KIB;
/** Linux takes 1024 on RISC-V; a little more costs nothing, in `bytes` */
const MAX_APPEND_BYTES = 4 * KIB;

/** In memory; or opened when a boot is planned, and read straight into RAM. It may be another at the next reset. */
export type BootFile = Uint8Array | { open(): ByteSource };

export interface BootOptions {
  /** In `bytes` */
  readonly ramBytes: number;
  readonly harts: number;
  /** 'builtin': our SBI below the kernel; 'none': the kernel in M-mode; a file: firmware, raw or ELF */
  readonly bios: 'builtin' | 'none' | BootFile;
  /** Image, ELF or flat binary; also compressed by gzip or zstd, where `decompressors` are given */
  readonly kernel?: BootFile | undefined;
  readonly initrd?: BootFile | undefined;
  readonly append?: string | undefined;
  /** Used instead of the generated tree, with `/chosen` updated */
  readonly dtb?: Uint8Array | undefined;
  readonly rngSeed?: Uint8Array | undefined;
  readonly aclint?: boolean | undefined;
  readonly decompressors?: Decompressors | undefined;
}

/** Something to store in RAM before the harts start. */
export interface BootSegment {
  readonly name: string;
  readonly address: number;
  readonly bytes: ByteSource;
  /** Zeroes follow the bytes up to this size */
  readonly memoryBytes: number;
}

export interface BootPlan {
  /** Inside RAM, apart from each other, by address */
  readonly segments: readonly BootSegment[];
  /** At `BOOT_ROM.base` */
  readonly rom: Uint8Array<ArrayBuffer>;
  readonly start: {
    /** M: all harts start here. S: hart 0 does, the others wait for the SBI's HSM */
    readonly privilege: 'M' | 'S';
    readonly pc: number;
    /** Hart id of the boot hart */
    readonly a0: number;
    /** Address of the device tree; in M-mode the reset vector sets a0, a1 and a2 itself */
    readonly a1: number;
  };
  readonly dtb: { readonly address: number; readonly bytes: Uint8Array };
  /** For fw_cfg and messages */
  readonly kernel: { readonly address: number; readonly bytes: number } | undefined;
  readonly initrd: { readonly address: number; readonly bytes: number } | undefined;
}

/**
 * Decides what is loaded where and how the machine starts, with the placement of QEMU's `-M virt`: firmware at
 * the start of RAM, the kernel 2 MiB behind it, then the initrd, the device tree near the end. All files are
 * untrusted; nothing is changed before the whole plan stands. Of files no more than headers has been read then.
 *
 * @throws BootError
 */
export function planBoot(options: BootOptions): BootPlan {
  const { bios, ramBytes } = options;
  const ramEnd = RAM_START + ramBytes;
  const append = checkAppend(options);
  const segments: BootSegment[] = [];

  const firmware = typeof bios === 'string' ? undefined : placeFirmware(bios, ramBytes, segments);
  if (options.kernel === undefined && firmware === undefined) {
    throw new BootError('ERR_BOOT_OPTIONS', 'Cannot start: neither a kernel nor a firmware is given');
  }
  const kernelStart =
    bios === 'none' ? RAM_START : alignUp(Math.max(firmware?.end ?? 0, RAM_START + 1), KERNEL_ALIGNMENT);
  const kernel =
    options.kernel === undefined
      ? undefined
      : place(
          openKernel(sourceOf(options.kernel), ramBytes, options.decompressors),
          'kernel',
          kernelStart,
          ramBytes,
          segments,
        );

  const tree = options.dtb === undefined ? generatedTree(options) : givenTree(options.dtb, ramBytes);
  const dtbRoom = Math.max(DTB_ROOM, options.dtb?.length ?? 0);
  const dtbAddress = alignDown(Math.min(ramEnd, DTB_CEILING) - dtbRoom, DTB_ALIGNMENT);
  if (dtbAddress < RAM_START) {
    throw new BootError('ERR_BOOT_SPACE', `Cannot place device tree: RAM is ${ramBytes} bytes, it needs 2 MiB`);
  }

  let initrd: { address: number; bytes: number } | undefined;
  const initrdFile = options.initrd === undefined ? undefined : sourceOf(options.initrd);
  if (initrdFile !== undefined && initrdFile.length > 0) {
    if (kernel === undefined) throw new BootError('ERR_BOOT_OPTIONS', 'Cannot use an initrd: no kernel is given');
    const address = placeInitrd(initrdFile.length, kernel, ramBytes, dtbAddress);
    initrd = { address, bytes: initrdFile.length };
    segments.push(segment('initrd', address, initrdFile));
  }

  setChosen(tree.root, {
    bootargs: append,
    initrd: initrd && { start: initrd.address, end: initrd.address + initrd.bytes },
    rngSeed: options.rngSeed,
  });
  const dtb = encodeFdt(tree);
  segments.push(segment('device tree', dtbAddress, byteSource(dtb)));
  checkSegments(segments, ramBytes);

  const start = firmware?.entry ?? (bios === 'none' ? machineModeEntry(segments, kernel!.entry) : RAM_START);
  const next = kernel?.entry ?? 0;
  // Whoever jumps, the target must be something that was loaded
  checkEntry(segments, firmware === undefined ? 'kernel' : 'firmware', bios === 'builtin' ? next : start);
  if (kernel !== undefined && bios !== 'none') checkEntry(segments, 'kernel', next);
  return {
    segments,
    rom: buildBootRom({ start, dtb: dtbAddress, next }),
    start:
      bios === 'builtin'
        ? { privilege: 'S', pc: next, a0: 0, a1: dtbAddress }
        : { privilege: 'M', pc: BOOT_ROM.base, a0: 0, a1: dtbAddress },
    dtb: { address: dtbAddress, bytes: dtb },
    kernel: kernel && { address: kernel.start, bytes: kernel.end - kernel.start },
    initrd,
  };
}

interface Placed {
  /** First and last byte that it occupies, and where it begins to run */
  readonly start: number;
  readonly end: number;
  readonly entry: number;
}

function placeFirmware(bios: BootFile, ramBytes: number, segments: BootSegment[]): Placed {
  return place(openProgram(sourceOf(bios), 'firmware', 'ERR_BOOT_FIRMWARE'), 'firmware', RAM_START, ramBytes, segments);
}

/** ELF goes where it says; anything else to `start`. */
function place(file: ProgramFile, what: string, start: number, ramBytes: number, segments: BootSegment[]): Placed {
  if (file.kind !== 'elf') {
    const memoryBytes = file.kind === 'image' ? Math.max(file.header.imageBytes, file.bytes.length) : file.bytes.length;
    segments.push({ name: what, address: start, bytes: file.bytes, memoryBytes });
    return { start, end: start + memoryBytes, entry: start };
  }
  const loaded = file.program.segments.flatMap((part): BootSegment[] => {
    // Linkers put the file's headers on a page of their own before the text: below RAM, where nothing can go
    const cut = part.fileOffset === 0 ? Math.max(0, RAM_START - part.physicalAddress) : 0;
    if (cut > 64 * KIB || cut >= part.memoryBytes) {
      if (part.fileOffset === 0 && cut >= part.memoryBytes && part.memoryBytes <= 64 * KIB) return [];
      throw outside(what, part.physicalAddress, part.memoryBytes, ramBytes);
    }
    const address = part.physicalAddress + cut;
    const memoryBytes = part.memoryBytes - cut;
    if (address < RAM_START || address + memoryBytes > RAM_START + ramBytes) {
      throw outside(what, part.physicalAddress, part.memoryBytes, ramBytes);
    }
    const skipped = Math.min(cut, part.fileBytes);
    const bytes = partOf(file.bytes, part.fileOffset + skipped, part.fileBytes - skipped);
    return [{ name: what, address, bytes, memoryBytes }];
  });
  const first = loaded[0];
  const last = loaded.at(-1);
  if (first === undefined || last === undefined) {
    throw new BootError('ERR_BOOT_SPACE', `Cannot load ${what}: none of it is inside RAM`);
  }
  const entry = file.program.physicalEntry;
  segments.push(...loaded);
  return { start: first.address, end: last.address + last.memoryBytes, entry };
}

/**
 * With `-bios none` QEMU starts at the first byte of RAM, whatever an ELF says of its entry: programs for it
 * begin there. One that has nothing there could not run on QEMU; its entry is the better guess.
 */
function machineModeEntry(segments: readonly BootSegment[], elfEntry: number): number {
  return segments.some(({ address }) => address === RAM_START) ? RAM_START : elfEntry;
}

function checkEntry(segments: readonly BootSegment[], what: 'kernel' | 'firmware', entry: number): void {
  if (
    segments.some(
      ({ name, address, memoryBytes }) => name === what && entry >= address && entry < address + memoryBytes,
    )
  ) {
    return;
  }
  throw new BootError(
    what === 'kernel' ? 'ERR_BOOT_KERNEL' : 'ERR_BOOT_FIRMWARE',
    `Cannot start ${what} at 0x${entry.toString(16)}: nothing of it is loaded there`,
  );
}

function placeInitrd(bytes: number, kernel: Placed, ramBytes: number, dtbAddress: number): number {
  const lowest = alignUp(kernel.end, PAGE);
  const usual = Math.max(kernel.start + Math.min(ramBytes / 2, INITRD_DISTANCE), lowest);
  // Below the tree where the two would meet; above it there may be room on machines with over 1 GiB
  for (const address of [usual, lowest]) {
    if (address + bytes <= dtbAddress) return address;
  }
  const above = dtbAddress + DTB_ALIGNMENT;
  if (above >= lowest && above + bytes <= RAM_START + ramBytes) return above;
  throw new BootError(
    'ERR_BOOT_SPACE',
    `Cannot place initrd: ${bytes} bytes, RAM has ${Math.max(0, dtbAddress - lowest)} behind the kernel`,
  );
}

function generatedTree(options: BootOptions): Fdt {
  const { ramBytes, harts, aclint } = options;
  return {
    root: buildDeviceTree({ ramBytes, harts, aclint: aclint === true }),
    reservations: [],
    bootCpu: 0,
  };
}

function givenTree(blob: Uint8Array, ramBytes: number): Fdt {
  let tree: Fdt;
  try {
    tree = decodeFdt(blob);
  } catch (error) {
    if (!(error instanceof WireError)) throw error;
    throw new BootError('ERR_BOOT_DTB', `Cannot use device tree: ${error.message}`, { cause: error });
  }
  if (tree.root.find('/cpus') === undefined) throw new BootError('ERR_BOOT_DTB', 'Cannot use device tree: no /cpus');
  const memory = tree.root.children.filter((node) => node.getText('device_type')?.[0] === 'memory');
  if (memory.length === 0) throw new BootError('ERR_BOOT_DTB', 'Cannot use device tree: no memory node');
  for (const node of memory) checkMemoryNode(tree.root, node, ramBytes);
  return tree;
}

/** A tree that promises RAM which is not there would make the guest fail far from the cause. */
function checkMemoryNode(root: FdtNode, node: FdtNode, ramBytes: number): void {
  const addressCells = root.getCells('#address-cells')?.[0] ?? 2;
  const sizeCells = root.getCells('#size-cells')?.[0] ?? 1;
  const cells = node.getCells('reg');
  if (addressCells < 1 || addressCells > 2 || sizeCells < 1 || sizeCells > 2) {
    throw new BootError('ERR_BOOT_DTB', 'Cannot use device tree: addresses and sizes take one or two cells');
  }
  const stride = addressCells + sizeCells;
  if (cells === undefined || cells.length === 0 || cells.length % stride !== 0) {
    throw new BootError('ERR_BOOT_DTB', `Cannot use device tree: ${node.name} has no whole ranges`);
  }
  const join = (part: number[]) => part.reduce((value, cell) => (value << 32n) | BigInt(cell), 0n);
  for (let at = 0; at < cells.length; at += stride) {
    const address = join(cells.slice(at, at + addressCells));
    const size = join(cells.slice(at + addressCells, at + stride));
    if (address < BigInt(RAM_START) || address + size > BigInt(RAM_START + ramBytes)) {
      throw new BootError(
        'ERR_BOOT_DTB',
        `Cannot use device tree: ${node.name} has 0x${address.toString(16)}+${size}, RAM is 0x${RAM_START.toString(16)}+${ramBytes}`,
      );
    }
  }
}

function checkAppend(options: BootOptions): string | undefined {
  const { append } = options;
  if (append === undefined || append === '') return undefined;
  if (options.kernel === undefined) {
    throw new BootError('ERR_BOOT_OPTIONS', 'Cannot use a kernel command line: no kernel is given');
  }
  const bytes = new TextEncoder().encode(append).length;
  if (append.includes('\0') || bytes > MAX_APPEND_BYTES) {
    throw new BootError(
      'ERR_BOOT_OPTIONS',
      `Cannot use kernel command line: ${bytes} bytes, limit is ${MAX_APPEND_BYTES} without NUL`,
    );
  }
  return append;
}

function checkSegments(segments: BootSegment[], ramBytes: number): void {
  segments.sort((a, b) => a.address - b.address);
  for (const [index, { name, address, memoryBytes }] of segments.entries()) {
    if (address < RAM_START || address + memoryBytes > RAM_START + ramBytes) {
      throw outside(name, address, memoryBytes, ramBytes);
    }
    const before = segments[index - 1];
    if (before !== undefined && before.address + before.memoryBytes > address) {
      throw new BootError(
        'ERR_BOOT_OVERLAP',
        `Cannot load ${name} to 0x${address.toString(16)}: ${before.name} is there up to 0x${(before.address + before.memoryBytes).toString(16)}`,
      );
    }
  }
}

function outside(what: string, address: number, bytes: number, ramBytes: number): BootError {
  return new BootError(
    'ERR_BOOT_SPACE',
    `Cannot load ${what} to 0x${address.toString(16)}+${bytes}: RAM is 0x${RAM_START.toString(16)}+${ramBytes}`,
  );
}

export function sourceOf(file: BootFile): ByteSource {
  return file instanceof Uint8Array ? byteSource(file) : file.open();
}

function segment(name: string, address: number, bytes: ByteSource): BootSegment {
  return { name, address, bytes, memoryBytes: bytes.length };
}

function alignUp(value: number, alignment: number): number {
  return Math.ceil(value / alignment) * alignment;
}

function alignDown(value: number, alignment: number): number {
  return Math.floor(value / alignment) * alignment;
}
