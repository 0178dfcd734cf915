import { createHash } from 'node:crypto';
import type { Engine } from '../../emulator/hart/hart.ts';
import { isLogItem, type LogItem } from '../../emulator/trace/log_items.ts';
import { parseNbdUri } from '../../protocols/nbd/uri.ts';
import { MAX_SHIFT } from '../../protocols/replay/limits.ts';
import type { ImageFormat } from '../nbd/images/image_format.ts';
import type { ThrottleLimits } from '../nbd/jobs/throttle.ts';
import type { SecretSource } from '../shared/secret.ts';

/** Everything that makes one virtual machine, as JSON: what the command line yields and what the library takes. */
export interface VmOptions {
  /** 1..64 of `A-Z a-z 0-9 _ . -`, not beginning with a dot or dash */
  readonly name: string;
  /** RFC 4122 text form; made from the name where absent */
  readonly uuid?: string;
  /** In `bytes`, a multiple of 2 MiB, at most 3 GiB */
  readonly ramBytes: number;
  /** 1..8 */
  readonly harts: number;
  /** What runs the guest's code: `translator` (default) compiles what is run often */
  readonly engine?: Engine;
  readonly bios: 'builtin' | 'none' | FileSource;
  readonly kernel?: FileSource;
  readonly initrd?: FileSource;
  readonly dtb?: FileSource;
  readonly append?: string;
  readonly disks: readonly DiskSource[];
  readonly display: boolean;
  readonly network: boolean;
  /** The terminal is a virtio console (`hvc0` of Linux), not the serial port */
  readonly virtioConsole?: boolean;
  /** Where the console listens; without it there is a page on a free loopback port if there is a display */
  readonly vnc?: VncOptions;
  /** Monitor sockets */
  readonly qmp: readonly string[];
  /** A migration URI, or 'defer' */
  readonly incoming?: string;
  /** `-S`: wait for `cont` */
  readonly paused: boolean;
  /** `-no-reboot`: a guest's reset ends the machine */
  readonly noReboot: boolean;
  /** `-no-shutdown`: after its end the machine waits for `quit` */
  readonly noShutdown: boolean;
  readonly serial: 'stdio' | 'none';
  /** `-d` and `-D`: QEMU's log items, and the file that is overwritten with them (else standard error) */
  readonly log?: LogOptions;
  /** `-icount`: all harts on one thread, guest time by counted instructions */
  readonly icount?: IcountOptions;
  /** `-profile`: at the machine's end, a flame graph of what the guest executed (folded stacks where it ends in .folded) */
  readonly profile?: string;
  /** ELF or System.map files: names for addresses in logs and profiles */
  readonly symbols?: readonly string[];
  /** `embedded`: all roles in this process, without isolation */
  readonly isolation: 'processes' | 'embedded';
}

export interface IcountOptions {
  /** An instruction takes 2^shift `ns`, 0..10; 'auto' keeps near real time, and no two runs are the same */
  readonly shift: number | 'auto';
  /** False: the time of an idle guest moves on at once */
  readonly sleep: boolean;
  /** What comes in from outside is written to the file, or read from it */
  readonly rr?: { readonly mode: 'record' | 'replay'; readonly file: string };
}

export interface LogOptions {
  readonly items: readonly LogItem[];
  readonly file?: string;
}

/** A file that the supervisor opens; the guest's side gets its descriptor only. */
export type FileSource = { readonly file: string } | { readonly builtin: 'firmware' };

/** An export of an NBD server. The disk role connects to it, and connects anew when the connection breaks. */
export interface NbdSource {
  /** `nbd://`, `nbds://`, `nbd+unix://` or `nbds+unix://` */
  readonly uri: string;
  /** Guest's requests wait this long for a server that is gone, in `ms` (default 60 000), then fail */
  readonly reconnectDelayMs?: number;
  /** At the start, how long to try again, in `ms` (default 0: one attempt) */
  readonly openTimeoutMs?: number;
  /** Connections to use where the server allows several (default 1) */
  readonly connections?: number;
  /** Absent: no TLS, or what the URI itself says */
  readonly tls?: {
    /** Folder with QEMU's names of certificates, or with keys.psk, or such a file */
    readonly credentials: string;
    /** PSK user, where the file has several */
    readonly user?: string;
    /** Name that the server's certificate must carry (default: the URI's host) */
    readonly hostname?: string;
  };
}

/** An image file with what is under it. Formats are said here, never found by looking. */
export interface DiskFile {
  /** A path; with `nbd` what the disk is called in queries */
  readonly file: string;
  readonly format: ImageFormat;
  /** The image under an image that has one; the name inside the image opens nothing. Opened read-only */
  readonly backing?: DiskFile;
  /** Where a qcow2 image keeps its clusters, if that is another file */
  readonly dataFile?: string;
  /** What monitor commands may call it: the node-name of a -blockdev */
  readonly node?: string;
  /** The passphrase of an encrypted image: read by the supervisor, and given to the disk role alone */
  readonly secret?: SecretSource;
}

export interface DiskSource extends DiskFile {
  readonly id: string;
  /** In place of the file */
  readonly nbd?: NbdSource;
  readonly readOnly: boolean;
  /** Writes go to memory and are forgotten */
  readonly snapshot: boolean;
  readonly bus: 'virtio-pci' | 'virtio-mmio';
  readonly throttle?: ThrottleLimits;
  /** Names inside the image may lead to files in this folder: resolved by the command, before anything starts */
  readonly backingRoot?: string;
}

export interface VncOptions {
  readonly host: string;
  /** TCP port of RFB; absent: no RFB port */
  readonly port?: number;
  /** Port of page and WebSocket, 0 any free one; absent: no page */
  readonly webPort?: number;
}

export const MIN_RAM_BYTES = 2 << 20;
export const MAX_RAM_BYTES = 3 * 2 ** 30;
export const MAX_HARTS = 8;
export const MAX_DISKS = 16;
export const MAX_SYMBOL_FILES = 16;
/** More images under each other are a mistake, or somebody's trick */
export const MAX_BACKING_FILES = 16;

const NAME = /^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$/;
const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i;

/** Options that cannot make a machine: the caller is wrong, not a peer. */
export class VmOptionsError extends Error {
  override readonly name = 'VmOptionsError';
  readonly code = 'ERR_VM_OPTIONS';
}

export const DEFAULT_VM_OPTIONS: Omit<VmOptions, 'name'> = {
  ramBytes: 128 << 20,
  harts: 1,
  bios: 'builtin',
  disks: [],
  display: true,
  network: false,
  qmp: [],
  paused: false,
  noReboot: false,
  noShutdown: false,
  serial: 'stdio',
  isolation: 'processes',
};

export function isVmName(name: string): boolean {
  return NAME.test(name);
}

/** @throws VmOptionsError naming the option */
export function checkVmOptions(options: VmOptions): void {
  const { name, uuid, ramBytes, harts, disks } = options;
  if (!isVmName(name)) throw refuse(`name ${JSON.stringify(name)}`, 'expected 1..64 letters, digits, _ . -');
  if (uuid !== undefined && !UUID.test(uuid)) throw refuse(`uuid ${JSON.stringify(uuid)}`, 'expected a UUID');
  if (!Number.isSafeInteger(ramBytes) || ramBytes < MIN_RAM_BYTES || ramBytes > MAX_RAM_BYTES) {
    throw refuse(`${ramBytes} bytes of RAM`, `expected ${MIN_RAM_BYTES / 2 ** 20}M to ${MAX_RAM_BYTES / 2 ** 20}M`);
  }
  if (ramBytes % MIN_RAM_BYTES !== 0) throw refuse(`${ramBytes} bytes of RAM`, 'expected a multiple of 2 MiB');
  if (!Number.isSafeInteger(harts) || harts < 1 || harts > MAX_HARTS) {
    throw refuse(`${harts} harts`, `expected 1..${MAX_HARTS}`);
  }
  if (disks.length > MAX_DISKS) throw refuse(`${disks.length} disks`, `limit is ${MAX_DISKS}`);
  const ids = new Set<string>();
  for (const disk of disks) {
    const { id } = disk;
    if (!NAME.test(id)) throw refuse(`disk id ${JSON.stringify(id)}`, 'expected 1..64 letters, digits, _ . -');
    if (ids.has(id)) throw refuse(`disk id ${id}`, 'it comes twice');
    ids.add(id);
    if (disk.backingRoot !== undefined) throw refuse(`disk ${id}`, 'names inside it are not followed here');
    if (disk.nbd !== undefined) checkNbdSource(id, disk.nbd, disk);
    let depth = 0;
    for (let under = disk.backing; under !== undefined; under = under.backing) depth++;
    if (depth > MAX_BACKING_FILES)
      throw refuse(`disk ${id}`, `${depth} images under it, limit is ${MAX_BACKING_FILES}`);
  }
  checkIcount(options);
  for (const item of options.log?.items ?? []) {
    if (!isLogItem(item)) throw refuse(`log item ${JSON.stringify(item)}`, 'unknown');
  }
  const symbolFiles = options.symbols?.length ?? 0;
  if (symbolFiles > MAX_SYMBOL_FILES) throw refuse(`${symbolFiles} symbol files`, `limit is ${MAX_SYMBOL_FILES}`);
  if (options.bios === 'none' && options.kernel === undefined && options.incoming === undefined) {
    throw refuse('no kernel', 'with -bios none there is nothing to start, expected -kernel');
  }
}

function checkIcount({ icount, incoming }: VmOptions): void {
  if (icount === undefined) return;
  const { shift, rr } = icount;
  if (shift !== 'auto' && (!Number.isInteger(shift) || shift < 0 || shift > MAX_SHIFT)) {
    throw refuse(`icount shift ${shift}`, `expected 0..${MAX_SHIFT} or auto`);
  }
  if (rr === undefined) return;
  if (shift === 'auto') throw refuse(`icount shift auto and rr ${rr.mode}`, 'such a run cannot be repeated');
  if (incoming !== undefined) throw refuse(`icount rr ${rr.mode}`, 'a recording begins where the machine begins');
}

function checkNbdSource(id: string, nbd: NbdSource, { format, backing, snapshot }: DiskSource): void {
  let type: string;
  try {
    ({ type } = parseNbdUri(nbd.uri).address);
  } catch (cause) {
    throw refuse(`disk ${id}`, (cause as Error).message);
  }
  if (type === 'vsock') throw refuse(`disk ${id}`, 'vsock addresses cannot be reached, Node has no such sockets');
  if (format !== 'raw' || backing !== undefined) throw refuse(`disk ${id}`, 'disks behind NBD are raw');
  if (snapshot) throw refuse(`disk ${id}`, 'there are no snapshots of disks behind NBD');
}

function refuse(what: string, found: string): VmOptionsError {
  return new VmOptionsError(`Cannot make a machine with ${what}: ${found}`);
}

/** Stable for a name, so that a machine that is started again keeps its UUID. */
export function uuidOfName(name: string): string {
  const hash = createHash('sha256').update(`caisson machine ${name}`).digest();
  hash[6] = (hash[6]! & 0x0f) | 0x80; // RFC 9562 §5.8: version 8, vendor-defined
  hash[8] = (hash[8]! & 0x3f) | 0x80;
  const hex = hash.toString('hex');
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20, 32)].join('-');
}
