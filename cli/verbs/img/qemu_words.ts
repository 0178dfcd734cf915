import { NBD_PORT } from '../../../protocols/nbd/mod.ts';
import { connectError, strerror } from '../../strerror.ts';
import { UsageError } from '../../usage_error.ts';

type Rule = readonly [ours: RegExp, qemus: string | ((...parts: string[]) => string)];

const INVALID_SIZE =
  'Invalid image size specified. You may use k, M, G, T, P or E suffixes for\nqemu-img: kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes.';

const A_SIZE =
  'expects a non-negative number below 2^64\nOptional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively.';
const TRY = "\nTry 'qemu-img --help' for more information";
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
  [/^EFBIG: .*ftruncate$/s, 'Could not resize file: File too large'],
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
  [/^Cannot use (?:SIZE|--size) /, INVALID_SIZE],
  ...(
    [
      ['-S', 'buffer size for sparse output'],
      ['-r', 'rate limit'],
      ['--granularity', 'granularity'],
      ['--start-offset', 'start offset'],
      ['--max-length', 'max length'],
      ['bs=', 'bs'],
      ['count=', 'count'],
      ['skip=', 'skip'],
    ] as const
  ).map(([option, what]): Rule => [new RegExp(`^Cannot use ${option} `), INVALID_SIZE.replace('image size', what)]),
  [
    /^Cannot use (?:-o|the new) (?:(cluster_size)=|size=|SIZE) .*: expected a size/s,
    (_all, key = 'size') => `Parameter '${key}' ${A_SIZE}`,
  ],
  [/^Cannot use -o refcount_bits=.*: expected a number$/s, "Parameter 'refcount_bits' expects a number"],
  [
    /^Cannot use -o refcount_bits=.*: expected a power/s,
    'Refcount width must be a power of two and may not exceed 64 bits',
  ],
  [/^Cannot use -o with (\w+)=.*: expected on or off$/s, "Parameter '$1' expects 'on' or 'off'"],
  [/^Cannot use -T (.*): expected /s, 'Invalid source cache option: $1'],
  [/^Cannot use -t (.*): expected /s, 'Invalid cache option: $1'],
  [/^Cannot use -m .*: expected /s, 'Invalid number of coroutines. Allowed number of coroutines is between 1 and 16'],
  [
    /^Cannot run convert: -S .*: expected a multiple/,
    'Invalid buffer size for sparse output specified. Valid sizes are multiples of 512 up to 16777216. Select 0 to disable sparse detection (fully allocates output).',
  ],
  [/^Cannot run convert: its \w+ is missing/, 'Must specify image file name'],
  [/^Cannot run convert: --target-is-zero is for/, '--target-is-zero requires use of -n flag'],
  [/^Cannot run convert: --target-image-opts is for/, '--target-image-opts requires use of -n flag'],
  [/^Cannot run convert: --skip-broken-bitmaps is for/, 'Use of --skip-broken-bitmaps requires --bitmaps'],
  [/^Cannot run convert: --bitmaps is for qcow2 of version 3/, "Format driver 'qcow2' does not support bitmaps"],
  [/^Cannot run convert: --bitmaps is for a SOURCE that is qcow2/, 'Source lacks bitmap support'],
  [/^Cannot run convert: --bitmaps is for one SOURCE/, 'Copying bitmaps only possible with single source'],
  [
    /^Cannot run convert: -c and -o preallocation= exclude/,
    'Compression and preallocation not supported at the same time',
  ],
  [/^Cannot run convert: -c is for qcow2/, 'Compression not supported for this file format'],
  [/^Cannot run convert: -F is for -B/, 'Backing format cannot be used without backing file'],
  [
    /^Cannot run (?:convert|dd): (.*) is one of the files that are read/s,
    'Failed to get "write" lock\nIs another process using the image [$1]?',
  ],
  [
    /^(?:.*: )?Cannot run rebase: (.*) would be under itself/s,
    'Failed to get shared "write" lock\nIs another process using the image [$1]?',
  ],
  [/^.*: Cannot find snapshot ".*"$/s, "Failed to load snapshot: Can't find snapshot"],
  [/^Cannot run dd: \w+=FILE is missing/, 'Must specify both input and output files'],
  [/^Cannot run dd: bs=.*: expected/, 'Invalid bs specified. Must be between 1 and 2147483647.'],
  [/^Cannot run dd: (\w*).* is unknown/, 'unrecognized operand $1'],
  [/^Cannot run resize: its \w+ is missing/, `Not enough arguments${TRY}`],
  [/^Cannot run resize: \S+ is too much/, `Expecting image file name and size${TRY}`],
  [
    /^Cannot run resize: the disk has \d+ bytes; if what is behind/,
    "Use the --shrink option to perform a shrink operation.\nqemu-img: warning: Shrinking an image will delete all data beyond the shrunken image's end. Before performing such an operation, make sure there is no important data there.",
  ],
  [/^Cannot run resize: the disk has \d+ bytes; that would leave/, 'New image size must be positive'],
  [/^Cannot run \w+: a new size of \d+ bytes is no multiple/, 'The new size must be a multiple of 512'],
  [/^Cannot run resize: --preallocation is for a larger/, 'Preallocation can only be used for growing images'],
  [/^Cannot run resize: raw images have no metadata/, 'Unsupported preallocation mode: metadata'],
  [/^Cannot run resize: --preallocation (\S+): expected/, "Invalid preallocation mode '$1'"],
  [/^Cannot resize .*: disks of format \w+ keep/, 'Image format driver does not support resize'],
  [/^Cannot run (?:create|convert): format (\S+) is not known/, "Unknown file format '$1'"],
  [/^Cannot run rebase: format (\S+) is not known/, "Invalid format name: '$1'"],
  [/^Cannot run \w+: format (\S+) of (.*) is not known/, "Could not open '$2': Unknown driver '$1'"],
  [/^Cannot run \w+: format (\S+) is not known/, "Unknown driver '$1'"],
  [/^Cannot resize the image to \d+ bytes: the limit is/, 'Failed to grow the L1 table: File too large'],
  [/^Cannot read bitmap "(.*)": there is none/s, "Dirty bitmap '$1' not found"],
  [/^Cannot make a bitmap of granularity/, 'Granularity must be power of 2 and at least 512'],
  [/^Cannot add bitmap "": /, 'Bitmap name cannot be empty'],
  [/^Cannot run rebase: format (\S+) is no name of one/, "Invalid format name: '$1'"],
  [/^Cannot run rebase: -b is missing/, `Must specify backing file (-b) or use unsafe mode (-u)${TRY}`],
  [/^Cannot run commit: (?:the image has no backing file|images of format)/, 'Image does not have a backing file'],
  [/^Cannot run amend: its -o is missing/, `Must specify options (-o)${TRY}`],
  [/^Cannot run amend: images of format (\w+) have no options/, "Format driver '$1' does not support option amendment"],
  [/^Cannot run measure: -o refcount_bits=/, 'Refcount width must be a power of two and may not exceed 64 bits'],
  [/^Cannot run measure: -o cluster_size=/, 'Cluster size must be a power of two between 512 and 2048k'],
  [
    /^Cannot run measure: extended L2 entries need/,
    'Extended L2 entries are only supported with cluster sizes of at least 16384 bytes',
  ],
  [
    /^Cannot run measure: refcounts of other than 16/,
    `Different refcount widths than 16 bits require compatibility level 1.1 or above ${USE}`,
  ],
  [
    /^Cannot run measure: a disk of \d+ bytes is too large/,
    'The image size is too large (try using a larger cluster size)',
  ],
  [/^Cannot run snapshot: -\w and -\w exclude/, `Cannot mix '-l', '-a', '-c', '-d'${TRY}`],
  [/^Cannot run bitmap: none of --/, 'Need at least one of --add, --remove, --clear, --enable, --disable, or --merge'],
  [/^Cannot run bitmap: (?:its \w+ is missing|\S+ is too much)/, 'Expecting filename and bitmap name'],
  [/^Cannot run bitmap: -g is for --add/, 'granularity only supported with --add'],
  [/^Cannot run bitmap: -b is for --merge/, 'Merge bitmap source file only supported with --merge'],
  [/^Cannot run bitmap: -F is for -b/, '-F only supported with -b'],
  [/^Cannot run check: --repair (.*): expected/, `Unknown option value for -r (expecting 'leaks' or 'all'): $1${TRY}`],
  [/^Cannot run compare: (?:its \w+ is missing|\S+ is too much)/, `Expecting two image file names${TRY}`],
  [/^Cannot run create: (Expecting image file name|Unexpected argument: .*?)(?: \(caisson img .*)?$/s, `$1${TRY}`],
  [/^Cannot run \w+: (?:its FILE is missing|\S+ is too much)/, `Expecting one image file name${TRY}`],
  [/^Cannot run \w+: (-\S+) is unknown/, `unrecognized option '$1'${TRY}`],
  [/^Cannot run \w+: (-\S+) needs its/, `missing argument for option '$1'${TRY}`],
  [/^Cannot (\S+): unknown/, `Command not found: $1${TRY}`],
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
