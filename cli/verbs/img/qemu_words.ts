import { NBD_PORT } from '../../../protocols/nbd/mod.ts';
import { connectError, strerror } from '../../strerror.ts';
import { UsageError } from '../../usage_error.ts';

type Rule = readonly [ours: RegExp, qemus: string | ((...parts: string[]) => string)];

const INVALID_SIZE =
  'Invalid image size specified. You may use k, M, G, T, P or E suffixes for\nqemu-img: kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes.';

const IRREVERSIBLY = 'will erase all the data in the image irreversibly - refusing operation';
const SUPPORTED = 'supported with compatibility level 1.1';
const USE = '(use compat=1.1 or greater)';
const REFCOUNTS = `Refcount widths other than 16 bits require compatibility level 1.1 or above ${USE}`;

/** What is wrong with a qcow2 image, behind "Cannot open the qcow2 image: " */
const OPEN_RULES: readonly Rule[] = [
  [/^unknown incompatible features: (.*)$/, (_all, list) => `Unsupported qcow2 feature(s): ${features(list!)}`],
  [/^disk of .* bytes, limit is/, 'Image is too big'],
  [/^l1_size \d+, the disk needs/, 'L1 table is too small'],
  [/^l1_size \d+, limit is/, 'Active L1 table too large'],
  [/^L1 table at/, 'Active L1 table offset invalid'],
  [/^no refcount table$/, 'Image does not contain a reference count table'],
  [/^refcount table of \d+ clusters, limit/, 'Image does not contain a reference count table'],
  [/^refcount table at/, 'Reference count table offset invalid'],
  [/^refcount_order/, 'Reference count entry width too large; may not exceed 64 bits'],
  [/^\d+ snapshots, limit/, 'Snapshot table too large'],
  [/^snapshot table at/, 'Snapshot table offset invalid'],
  [/^backing_file_offset/, 'Invalid backing file offset'],
  [/^backing file name of/, 'Backing file name too long'],
  [/^header_length .* to \d+/, 'qcow2 header too short'],
  [/^cluster_bits (\d+)/, (_all, bits) => `Unsupported cluster size: 2^${bits}`],
  [/^version (\d+)/, (_all, version) => `Unsupported qcow2 version ${version}`],
  [/^it keeps its data in an external file, and none was given/, "'data-file' is required for this image"],
  [/^a data file was given, it has none/, "'data-file' can only be set for images with an external data file"],
  [/^it is marked corrupt/, 'qcow2: Image is corrupt; cannot be opened read/write'],
];

/**
 * Our errors and qemu-img's. Scripts read the latter; where a text has no counterpart, it stays ours. Texts are
 * matched, because the layers below do not know who asks.
 */
const RULES: readonly Rule[] = [
  [/^(.*): Cannot (?:accept|read) qcow2 header magic: .*$/s, "Could not open '$1': Image is not in qcow2 format"],
  [/^(.*): Cannot open the qcow2 image: (.*)$/s, (_all, path, why) => `Could not open '${path}': ${reason(why!)}`],
  [
    /^(.*): Cannot read the snapshot table: (.*)$/s,
    (_all, path) => `Could not open '${path}': Snapshot table is too big`,
  ],
  [
    /^(E[A-Z0-9]+): [^,]*, \w+ '(.*)'$/s,
    (_all, code, path) => `Could not open '${path}': Could not open '${path}': ${strerror(code!)}`,
  ],
  [
    /^(.*): Cannot use the image: (?:neither a regular file nor a block device|not a regular file)$/s,
    "Could not open '$1': 'file' driver requires '$1' to be a regular file",
  ],
  [
    /^(nbds?(?:\+unix)?:\S*): ((?:connect|getaddrinfo) E.*)$/s,
    (_all, name, why) => `Could not open '${name}': ${connectError(why!, portOf(name!)) ?? why}`,
  ],
  [/^Cannot make (.*): .* \((E[A-Z0-9]+)\)$/s, (_all, path, code) => `Could not create '${path}': ${strerror(code!)}`],
  [/^Cannot write at byte (\d+): no space left$/, 'error while writing at byte $1: No space left on device'],
  [/^(?:Cannot write: no space left|ENOSPC: [^,]*, write)$/, 'Could not write: No space left on device'],
  [/^Cannot follow (.*): it comes twice in its own chain$/, "Backing file '$1' creates an infinite loop."],
  [
    /^Cannot follow (.*): its backing file "(.*)" cannot be opened: (\w+) \((.*)\)$/,
    (_all, path, _name, code, at) =>
      `Could not open '${path}': Could not open backing file: Could not open '${at}': ${strerror(code!)}`,
  ],
  [
    /^Cannot follow (.*): its data file "(.*)" cannot be opened: (\w+) \((.*)\)$/,
    (_all, path, _name, code, at) => `Could not open '${path}': Could not open '${at}': ${strerror(code!)}`,
  ],
  [
    /^Cannot follow (.*): the format of its backing file "(.*)" is not known/,
    "Could not open '$1': Could not open backing file: Unknown driver '$2'",
  ],
  [/^Cannot find (.*) in the chain of (.*): it has/, "Did not find '$1' in the backing chain of '$2'"],
  [
    /^Cannot copy bitmap '(.*)': it was not written back/,
    "Cannot copy inconsistent bitmap '$1'\nTry --skip-broken-bitmaps, or use 'qemu-img bitmap --remove' to delete it",
  ],
  [/^Cannot run convert: -o is for a new TARGET/, '-o has no effect when skipping image creation'],
  [/^Cannot run convert: --bitmaps .* images of format (\w+) keep none/, "Format driver '$1' does not support bitmaps"],
  [
    /^Cannot run convert: -B is for one SOURCE/,
    'Having a backing file for the target makes no sense when concatenating multiple input images',
  ],
  [/^Cannot run convert: the format of .* is not given/, 'Use of backing file requires explicit backing format'],
  [
    /^Cannot amend the image: it has no data file/,
    'data-file can only be set for images that use an external data file',
  ],
  [/^Cannot amend the image: lazy refcounts need version 3$/, `Lazy refcounts only ${SUPPORTED} and above ${USE}`],
  [/^Cannot use -o with compat=(.*): expected/, 'Unknown compatibility level $1'],
  [/^Cannot amend the image: refcounts of \d+ bits need version 3$/, REFCOUNTS],
  [/^Cannot amend the image: version 2 has refcounts of 16 bits,/, 'compat=0.10 requires refcount_bits=16'],
  [/^Cannot amend the image: version 2 has no data files/, 'Cannot downgrade an image with a data file'],
  [
    /^Cannot amend the image: version 2 has no incompatible features, and (0x[0-9a-f]+) are/,
    'Cannot downgrade an image with incompatible features $1 set',
  ],
  [
    /^Cannot amend the image: version 2 keeps no snapshots of another size/,
    'Internal snapshots prevent downgrade of image',
  ],
  [
    /^Cannot change the refcounts to (\d+) bits: the cluster at (\d+) has (\d+)$/,
    (_all, bits, at, count) =>
      `Cannot decrease refcount entry width to ${bits} bits: Cluster at offset 0x${Number(at).toString(16)} has a refcount of ${count}`,
  ],
  [
    /^Cannot run amend: backing_file= would be another one/,
    "Cannot amend the backing file\nYou can use 'qemu-img rebase' instead.",
  ],
  [/^Cannot run amend: data_file_raw=on is for a new image/, 'data-file-raw cannot be set on existing images'],
  [/^Cannot use key-secret=(.*): no --object secret has this id$/, "No secret with id '$1'"],
  [/^Cannot change the key slots: all key slots are in use$/, "Can't add a keyslot - all keyslots are in use"],
  [
    /^Cannot change the key slots: key slot (\d) is in use, erase it first$/,
    'Refusing to overwrite active keyslot $1 - please erase it first',
  ],
  [
    /^Cannot change the key slots: key slot (\d) is the only one in use/,
    `Attempt to erase the only active keyslot $1 which ${IRREVERSIBLY}`,
  ],
  [
    /^Cannot change the key slots: all key slots in use have this passphrase/,
    `All the active keyslots match the (old) password that was given and erasing them ${IRREVERSIBLY}`,
  ],
  [
    /^Cannot change the key slots: no key slot has the passphrase/,
    'No keyslots match given (old) password for erase operation',
  ],
  [/^Cannot run measure: neither a FILE nor --size/, 'Either --size N or one filename must be specified.'],
  [/^Cannot run measure: --size and FILE exclude/, '--size N cannot be used together with a filename.'],
  [/^Cannot run measure: \S+ is too much/, 'At most one filename argument is allowed.'],
  [/^Cannot run measure: .* are for a FILE/, '--image-opts, -f, and -l require a filename argument.'],
  [/^Cannot run measure: -O (\S+): expected/, "Unknown file format '$1'"],
  [/^Cannot run \w+: --output \S+: expected/, '--output must be used with human or json as argument.'],
  [/^Cannot run convert: -C and -S exclude/, 'Cannot enable copy offloading when -S is used'],
  [/^Cannot run convert: -C and -c exclude/, 'Cannot enable copy offloading when -c is used'],
  [/^Cannot run convert: -C and --salvage exclude/, 'Cannot use copy offloading in salvaging mode'],
  [/^Cannot read -o (.*): expected key=value$/s, 'Invalid option list: $1'],
  [
    /^Cannot use -o with (cluster_size|encryption|preallocation)=: unknown/,
    "Invalid parameter '$1'\nThis option is only supported for image creation",
  ],
  [/^Cannot use -o with (\w+)=: unknown/, "Invalid parameter '$1'"],
  [
    /^Cannot run rebase: the format of (.*) is not given/,
    "Could not change the backing file to '$1': backing format must be specified",
  ],
  [/^Cannot use SIZE /, INVALID_SIZE],
  [
    /^Cannot resize the image to \d+ bytes: version 2, and it has snapshots$/,
    "Can't resize a v2 image which has snapshots",
  ],
];

/** What was being done, where qemu-img's words for the same failure differ by that */
export interface Doing {
  /** `convert` and its like */
  readonly command: string;
  /** Of what is made */
  readonly format: string;
}

/** The text of an error as qemu-img has it, without its name in front. */
export function inQemusWords(error: unknown, doing?: Doing): string {
  const text = error instanceof Error ? error.message : String(error);
  const found = inContext(applied(RULES, text), doing);
  return found ?? (error instanceof UsageError ? text.replace(/ \(caisson img .* --help\)$/, '') : text);
}

/** `convert` and `dd` have words in front of what goes wrong with the new file. */
function inContext(said: string | undefined, doing: Doing | undefined): string | undefined {
  const creating = /^Could not create '(.*)': /s.exec(said ?? '')?.[1];
  switch (doing?.command) {
    case 'convert':
      return creating === undefined ? said : `${creating}: error while converting ${doing.format}: ${said}`;
    case 'dd':
      if (creating !== undefined) return `${creating}: error while creating output image: ${said}`;
      return said?.replace(/^error while writing at byte \d+:/, 'error while writing to output image file:');
    default:
      return said;
  }
}

function applied(rules: readonly Rule[], text: string): string | undefined {
  for (const [ours, qemus] of rules) {
    if (!ours.test(text)) continue;
    if (typeof qemus !== 'string') return qemus(...(ours.exec(text) as string[]));
    const match = ours.exec(text)!;
    return qemus.replace(/\$(\d)/g, (_all, index: string) => match[Number(index)] ?? '');
  }
  return undefined;
}

function portOf(uri: string): number {
  return Number(/^nbds?:\/\/(?:\[[^\]]*\]|[^/:]*):(\d+)/.exec(uri)?.[1] ?? NBD_PORT);
}

function reason(why: string): string {
  return applied(OPEN_RULES, why) ?? why;
}

/** Names of features, and the bits without one as a number in hexadecimal. */
function features(list: string): string {
  const named: string[] = [];
  let rest = 0n;
  for (const item of list.split(', ')) {
    const bit = /^bit (\d+)$/.exec(item)?.[1];
    if (bit === undefined) named.push(item);
    else rest |= 1n << BigInt(bit);
  }
  return [...named, ...(rest === 0n ? [] : [`Unknown incompatible feature: ${rest.toString(16)}`])].join(', ');
}
