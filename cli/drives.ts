import { resolve } from 'node:path';
import { IMAGE_FORMATS, type ImageFormat } from '../services/nbd/images/image_format.ts';
import type { DiskSource, ThrottleLimits } from '../services/supervisor/mod.ts';
import {
  flattenJson,
  isNbdUri,
  type NbdWords,
  nbdSource,
  parseNbdNode,
  parseNbdWords,
  type TlsObject,
} from './block_devices.ts';
import { type ImageWords, keySecretOf, withSecrets } from './encryption.ts';
import { KeyValues } from './key_value.ts';
import { parseInteger } from './numbers.ts';
import { type SecretObject, Secrets } from './secrets.ts';
import { didYouMean } from './suggest.ts';
import { UsageError } from './usage_error.ts';

/** One `-drive` */
export interface Drive extends ImageWords {
  /** Then `file` is its URI */
  readonly nbd?: NbdWords;
  readonly id: string | undefined;
  readonly readOnly: boolean;
  readonly snapshot: boolean;
  /** Names inside the image may lead to files in this folder */
  readonly backingRoot?: string;
  readonly throttle?: ThrottleLimits;
  /** 'virtio' is a device too; 'none' waits for a -device */
  readonly interface: 'virtio' | 'none';
}

/** One `-blockdev`, or what is written inside one: a file, or an image in a file */
export interface BlockNode extends ImageWords {
  readonly nbd?: NbdWords;
  readonly readOnly: boolean;
  /** The nodes that this one lies over */
  readonly over?: readonly string[];
}

const DISK_DEVICES = {
  'virtio-blk-pci': 'virtio-pci',
  'virtio-blk': 'virtio-pci',
  'virtio-blk-device': 'virtio-mmio',
} as const;
/** The bus device is accepted and adds nothing: the console has its own */
const CONSOLE_DEVICES = ['virtconsole', 'virtio-serial-pci', 'virtio-serial'];
export const NETWORK_DEVICES: readonly string[] = ['virtio-net-pci', 'virtio-net'];
/** Devices of the `virt` machine that are there with a display anyway */
const DISPLAY_DEVICES = [
  'virtio-gpu-pci',
  'virtio-gpu-device',
  'virtio-keyboard-pci',
  'virtio-tablet-pci',
  'virtio-keyboard-device',
  'virtio-tablet-device',
];
const FILE_DRIVERS = ['file', 'host_device'];
/** What libvirt says of every node; we always behave so */
const IGNORED = ['auto-read-only', 'discard'];

export interface GivenDevices {
  readonly drives: readonly Drive[];
  readonly nodes: ReadonlyMap<string, BlockNode>;
  readonly devices: readonly KeyValues[];
  /** Credentials that NBD disks name */
  readonly objects: readonly TlsObject[];
  /** Passphrases that encrypted images name */
  readonly secrets: readonly SecretObject[];
  /** `-snapshot`: all disks */
  readonly snapshot: boolean;
}

/** The disks, and the names of the devices that are none. @throws UsageError */
export function joinDevices({ drives, nodes, devices, objects, secrets, snapshot }: GivenDevices): {
  disks: DiskSource[];
  others: ReadonlySet<string>;
} {
  const others = new Set<string>();
  const waiting = new Map<string, Drive>();
  const disks: DiskSource[] = [];
  const known = new Secrets('-object', secrets);
  const add = (
    given: Pick<Drive, 'nbd' | 'readOnly' | 'snapshot' | 'backingRoot' | 'throttle' | keyof ImageWords>,
    id: string,
    bus: DiskSource['bus'],
  ) =>
    disks.push({
      ...withSecrets(layersOf(given), known),
      ...(given.nbd === undefined ? {} : { nbd: nbdSource(given.nbd, objects) }),
      ...(given.backingRoot === undefined ? {} : { backingRoot: given.backingRoot }),
      ...(given.throttle === undefined ? {} : { throttle: given.throttle }),
      id,
      readOnly: given.readOnly,
      snapshot: given.snapshot || snapshot,
      bus,
    });
  for (const [index, drive] of drives.entries()) {
    const id = drive.id ?? `virtio${index}`;
    if (drive.interface === 'virtio') add(drive, id, 'virtio-pci');
    else if (drive.id === undefined)
      throw new UsageError('Cannot use -drive with if=none: id= is missing, a -device needs it');
    else if (waiting.has(id)) throw new UsageError(`Cannot use -drive: id ${id} comes twice`);
    else waiting.set(id, drive);
  }
  for (const device of devices) {
    const driver = device.require('driver');
    if ([...DISPLAY_DEVICES, ...CONSOLE_DEVICES, ...NETWORK_DEVICES].includes(driver)) {
      others.add(driver);
      continue;
    }
    const bus = Object.hasOwn(DISK_DEVICES, driver) ? DISK_DEVICES[driver as keyof typeof DISK_DEVICES] : undefined;
    if (bus === undefined) {
      const words = [...Object.keys(DISK_DEVICES), ...DISPLAY_DEVICES, ...CONSOLE_DEVICES, ...NETWORK_DEVICES];
      throw new UsageError(
        `Cannot use -device ${driver}: unknown${didYouMean(driver, words)}; expected ${words.join(', ')}`,
      );
    }
    const id = device.require('drive');
    device.take('id');
    device.end();
    const drive = waiting.get(id);
    const node = nodes.get(id);
    if (drive !== undefined) {
      waiting.delete(id);
      add(drive, id, bus);
    } else if (node === undefined) {
      throw new UsageError(
        `Cannot use -device ${driver}: there is no -drive with if=none,id=${id}, no -blockdev ${id}`,
      );
    } else if (disks.some((disk) => disk.id === id)) {
      throw new UsageError(`Cannot use -device ${driver}: -blockdev ${id} has a device`);
    } else add({ ...node, snapshot: false }, id, bus);
  }
  for (const id of waiting.keys()) throw new UsageError(`Cannot use -drive ${id}: no -device has drive=${id}`);
  const used = new Set([...disks.map(({ id }) => id), ...[...nodes.values()].flatMap(({ over }) => over ?? [])]);
  for (const id of nodes.keys()) {
    if (!used.has(id)) throw new UsageError(`Cannot use -blockdev ${id}: no -device has drive=${id}`);
  }
  return { disks, others };
}

/** @throws UsageError */
export function parseDrive(value: string): Drive {
  const keys = new KeyValues('-drive', value);
  const path = keys.require('file');
  const format = keys.take('format');
  if (format === undefined)
    throw new UsageError(`Cannot use -drive ${path}: format= is missing, it is never guessed; expected ${formats()}`);
  const backing = keys.takeUnder('backing');
  const dataFile = keys.takeUnder('data-file');
  const encrypt = keys.takeUnder('encrypt');
  const throttle = throttleOf(keys.takeUnder('throttling'));
  const root = keys.take('backing-root');
  if (root !== undefined && (backing.size > 0 || dataFile.size > 0)) {
    throw new UsageError('Cannot use -drive with backing-root= and backing. or data-file. together');
  }
  const nbd = isNbdUri(path) ? parseNbdWords(keys, path, 'file.') : undefined;
  const drive: Drive = {
    id: keys.take('id'),
    file: nbd === undefined ? resolve(path) : path,
    ...(nbd === undefined ? {} : { nbd }),
    format: formatOf('-drive', format),
    ...keySecretOf('-drive', formatOf('-drive', format), {
      keySecret: keys.take('key-secret'),
      ...(encrypt.size === 0 ? {} : { encrypt: treeOf('-drive', encrypt) }),
    }),
    ...(backing.size === 0 ? {} : { backing: layersOf(nodeOf('-drive', treeOf('-drive', backing), new Map())) }),
    ...(dataFile.size === 0 ? {} : { dataFile: fileNode('-drive', treeOf('-drive', dataFile)).file }),
    readOnly: keys.flag('readonly', keys.flag('read-only', false)),
    snapshot: keys.flag('snapshot', false),
    ...(root === undefined ? {} : { backingRoot: resolve(root) }),
    ...(throttle === undefined ? {} : { throttle }),
    interface: keys.oneOf('if', ['virtio', 'none'], 'virtio'),
  };
  keys.end();
  return drive;
}

const RATES = {
  'iops-total': 'opsTotal',
  'iops-read': 'opsRead',
  'iops-write': 'opsWrite',
  'bps-total': 'bytesTotal',
  'bps-read': 'bytesRead',
  'bps-write': 'bytesWrite',
} as const;

/** `throttling.iops-total=N`, `throttling.bps-read-max=N` … with QEMU's words. @throws UsageError */
function throttleOf(words: ReadonlyMap<string, string>): ThrottleLimits | undefined {
  if (words.size === 0) return undefined;
  const rest = new Map(words);
  const take = (key: string): number | undefined => {
    const text = rest.get(key);
    rest.delete(key);
    return text === undefined ? undefined : parseInteger(`-drive throttling.${key}=`, text, 0, 1e15 - 1);
  };
  const limits: { -readonly [K in keyof ThrottleLimits]: ThrottleLimits[K] } = {};
  for (const [key, name] of Object.entries(RATES)) {
    const average = take(key);
    const burst = take(`${key}-max`);
    const burstSeconds = take(`${key}-max-length`);
    if (average === undefined || average === 0) {
      if (burst === undefined && burstSeconds === undefined) continue;
      throw new UsageError(`Cannot use -drive with throttling.${key}-max=: throttling.${key}= is missing`);
    }
    limits[name] = {
      average,
      ...(burst === undefined ? {} : { burst }),
      ...(burstSeconds === undefined ? {} : { burstSeconds }),
    };
  }
  const opBytes = take('iops-size');
  if (opBytes !== undefined) limits.opBytes = opBytes;
  for (const key of rest.keys()) {
    throw new UsageError(`Cannot use -drive with throttling.${key}=: unknown${didYouMean(key, Object.keys(RATES))}`);
  }
  return limits;
}

type Tree = { readonly [key: string]: unknown };

/** Adds the node of one `-blockdev`, dotted keys or JSON. @throws UsageError */
export function addBlockNode(nodes: Map<string, BlockNode>, value: string): void {
  const keys = new KeyValues('-blockdev', value.trimStart().startsWith('{') ? flattenJson(value) : value, 'driver');
  const name = keys.require('node-name');
  if (nodes.has(name)) throw new UsageError(`Cannot use -blockdev: node-name ${name} comes twice`);
  if (keys.take('driver') !== 'nbd') {
    nodes.set(name, nodeOf('-blockdev', treeOf('-blockdev', keys.takeAll()), nodes));
    return;
  }
  const readOnly = keys.flag('read-only', false);
  for (const key of IGNORED) keys.take(key);
  const nbd = parseNbdNode(keys);
  keys.end();
  nodes.set(name, { file: nbd.uri, format: 'raw', nbd, readOnly });
}

/** A node with what is under it. References are to nodes that were given before. */
function nodeOf(option: string, tree: Tree, nodes: ReadonlyMap<string, BlockNode>): BlockNode {
  const { driver, file, backing, 'data-file': dataFile, 'read-only': readOnly, ...others } = tree;
  const { encrypt, 'key-secret': keySecret, 'node-name': node, ...rest } = others;
  const name = typeof driver === 'string' ? driver : '';
  if (FILE_DRIVERS.includes(name)) return fileNode(option, tree);
  noMore(option, rest, `driver ${name}`);
  const format = formatOf(option, name);
  if (file === undefined) throw new UsageError(`Cannot use ${option} with driver=${name}: file= is missing`);
  if ((format === 'raw' || format === 'luks') && (backing !== undefined || dataFile !== undefined)) {
    throw new UsageError(`Cannot use ${option}: ${format} images have nothing under them`);
  }
  const under = referred(option, file, nodes, fileNode);
  if (under.nbd !== undefined && format !== 'raw') {
    throw new UsageError(`Cannot use ${option} with driver=${name}: over NBD a disk is raw`);
  }
  return {
    file: under.file,
    format,
    ...(typeof node === 'string' ? { node } : {}),
    ...keySecretOf(option, format, { encrypt, keySecret }),
    ...(under.nbd === undefined ? {} : { nbd: under.nbd }),
    // `backing=null` says that there is none.
    ...(backing === undefined || backing === 'null'
      ? {}
      : { backing: layersOf(referred(option, backing, nodes, nodeOf)) }),
    ...(dataFile === undefined ? {} : { dataFile: referred(option, dataFile, nodes, fileNode).file }),
    readOnly: flagOf(option, 'read-only', readOnly) || under.readOnly,
    over: [file, backing, dataFile].filter((value) => typeof value === 'string'),
  };
}

/** `driver=qcow2,file.filename=PATH,…`, as `--image-opts` has it: an image in a file, with what is under it. */
export function parseImageWords(option: string, text: string): ImageWords {
  return imageWordsOf(option, new KeyValues(option, text).takeAll());
}

/** The same of words that were read already. @throws UsageError */
export function imageWordsOf(option: string, words: ReadonlyMap<string, string>): ImageWords {
  if (!words.has('driver')) {
    throw new UsageError(`Cannot use ${option}: driver= is missing, it is never guessed; expected ${formats()}`);
  }
  return layersOf(nodeOf(option, treeOf(option, words), new Map()));
}

/** A plain file: as a disk it is raw. */
function fileNode(option: string, tree: Tree): BlockNode {
  const { driver = 'file', filename, 'read-only': readOnly, ...rest } = tree;
  if (!FILE_DRIVERS.includes(String(driver))) {
    throw new UsageError(`Cannot use ${option} with driver=${String(driver)}: expected file`);
  }
  noMore(option, rest, 'a file');
  if (typeof filename !== 'string' || filename === '') {
    throw new UsageError(`Cannot use ${option} with driver=${String(driver)}: filename= is missing`);
  }
  return { file: resolve(filename), format: 'raw', readOnly: flagOf(option, 'read-only', readOnly) };
}

function noMore(option: string, rest: Tree, what: string): void {
  for (const key of Object.keys(rest)) {
    if (key === 'node-name' || IGNORED.includes(key)) continue;
    throw new UsageError(`Cannot use ${option} with ${key}=: unknown for ${what}`);
  }
}

function referred(
  option: string,
  value: unknown,
  nodes: ReadonlyMap<string, BlockNode>,
  make: (option: string, tree: Tree, nodes: ReadonlyMap<string, BlockNode>) => BlockNode,
): BlockNode {
  if (typeof value === 'object' && value !== null) return make(option, value as Tree, nodes);
  const node = nodes.get(String(value));
  if (node === undefined) throw new UsageError(`Cannot use ${option}: ${String(value)} names no node from before`);
  return node;
}

function layersOf({ file, format, backing, dataFile, keySecret, node }: ImageWords): ImageWords {
  return {
    file,
    format,
    ...(node === undefined ? {} : { node }),
    ...(keySecret === undefined ? {} : { keySecret }),
    ...(backing === undefined ? {} : { backing }),
    ...(dataFile === undefined ? {} : { dataFile }),
  };
}

function formatOf(option: string, name: string): ImageFormat {
  const format = IMAGE_FORMATS.find((known) => known === name);
  if (format !== undefined) return format;
  const key = option === '-drive' ? 'format' : 'driver';
  throw new UsageError(`Cannot use ${option} with ${key}=${name}: expected ${formats()}`);
}

function formats(): string {
  return IMAGE_FORMATS.join(' or ');
}

function flagOf(option: string, key: string, value: unknown): boolean {
  if (value === undefined || value === 'off') return false;
  if (value === 'on') return true;
  throw new UsageError(`Cannot use ${option} with ${key}=${String(value)}: expected on or off`);
}

/** `a.b=c` is `{a: {b: 'c'}}`. */
function treeOf(option: string, dotted: ReadonlyMap<string, string>): Tree {
  const root = new Map<string, unknown>();
  for (const [key, value] of dotted) {
    const parts = key.split('.');
    let at = root;
    for (const part of parts.slice(0, -1)) {
      const next = at.get(part) ?? new Map<string, unknown>();
      if (!(next instanceof Map)) throw new UsageError(`Cannot use ${option}: ${part}= and ${key}= do not go together`);
      at.set(part, next);
      at = next;
    }
    const last = parts.at(-1)!;
    if (last === '' || at.has(last)) throw new UsageError(`Cannot use ${option} with ${key}=: it does not fit`);
    at.set(last, value);
  }
  const plain = (map: Map<string, unknown>): Tree =>
    Object.fromEntries([...map].map(([key, value]) => [key, value instanceof Map ? plain(value) : value]));
  return plain(root);
}
