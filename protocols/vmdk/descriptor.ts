import { WireError, type WireErrorCode } from '../bytes/mod.ts';
import { VMDK_LIMITS } from './limits.ts';

const NAME = 'VMDK descriptor';
const SECTOR_BYTES = 512;
/** "parentCID=ffffffff": there is no parent */
export const VMDK_NO_PARENT = 0xffff_ffff;

export type VmdkExtentType = 'FLAT' | 'VMFS' | 'SPARSE' | 'ZERO';
const EXTENT_TYPES: readonly VmdkExtentType[] = ['FLAT', 'VMFS', 'SPARSE', 'ZERO'];

/** One line of the "Extent description". */
export interface VmdkExtentLine {
  readonly access: 'RW' | 'RDONLY' | 'NOACCESS';
  /** In `bytes` */
  readonly lengthBytes: number;
  readonly type: VmdkExtentType;
  /** Text of the image, not to be opened by itself; undefined for ZERO */
  readonly file: string | undefined;
  /** Of a flat extent: where it begins in its file, in `bytes` */
  readonly offset: number;
}

export interface VmdkDescriptor {
  /** Changes with each writer of the disk */
  readonly cid: number;
  /** VMDK_NO_PARENT, or the cid of the disk under this one */
  readonly parentCid: number;
  readonly createType: string;
  /** Of the parent: text of the image, not to be opened by itself */
  readonly parentName: string | undefined;
  readonly extents: readonly VmdkExtentLine[];
}

/** Decodes a descriptor: a file's whole text, or a sparse file's area of it, filled up with NULs. @throws WireError */
export function decodeVmdkDescriptor(bytes: Uint8Array): VmdkDescriptor {
  if (bytes.length > VMDK_LIMITS.descriptorBytes) {
    throw bad('ERR_WIRE_LIMIT', `${bytes.length} bytes, limit is ${VMDK_LIMITS.descriptorBytes}`);
  }
  const text = decodeText(bytes);
  const values = new Map<string, string>();
  const extents: VmdkExtentLine[] = [];
  for (const raw of text.split(/\r?\n/)) {
    // Trimmed here, not by the pattern below: two runs of spaces at its end would try every way to share them.
    const line = raw.trim();
    if (line === '' || raw.startsWith('#')) continue;
    if (/^(?:RW|RDONLY|NOACCESS)\s/.test(line)) {
      if (extents.length === VMDK_LIMITS.extents) throw bad('ERR_WIRE_LIMIT', `more than ${extents.length} extents`);
      extents.push(decodeExtent(line));
      continue;
    }
    const entry = /^([\w.]{1,100})\s*=\s*(?:"([^"]*)"|(\S*))$/.exec(line);
    if (entry === null) throw bad('ERR_WIRE_TEXT', `line ${shown(line)} is neither a value nor an extent`);
    const key = entry[1]!.toLowerCase();
    // The "disk data base" is the virtual machine's; what says where the data is, may stand there once.
    if (!key.startsWith('ddb.') && values.has(key)) throw bad('ERR_WIRE_VALUE', `${entry[1]} twice`);
    values.set(key, entry[2] ?? entry[3] ?? '');
  }
  const version = values.get('version');
  if (version === undefined || !/^[1-4]$/.test(version)) {
    throw bad('ERR_WIRE_VALUE', `version ${shown(version ?? 'missing')}, expected 1 to 4`);
  }
  const createType = values.get('createtype');
  if (createType === undefined || !/^\w{1,64}$/.test(createType)) throw bad('ERR_WIRE_VALUE', 'createType is missing');
  if (extents.length === 0) throw bad('ERR_WIRE_VALUE', 'no extents');
  const total = extents.reduce((sum, extent) => sum + extent.lengthBytes, 0);
  if (total > VMDK_LIMITS.sizeBytes)
    throw bad('ERR_WIRE_LIMIT', `disk of ${total} bytes, limit is ${VMDK_LIMITS.sizeBytes}`);
  return {
    cid: hexadecimal(values.get('cid'), 'CID'),
    parentCid: hexadecimal(values.get('parentcid') ?? 'ffffffff', 'parentCID'),
    createType,
    parentName: values.get('parentfilenamehint'),
    extents,
  };
}

export const VMDK_ADAPTERS = ['ide', 'buslogic', 'lsilogic', 'legacyESX'] as const;
export type VmdkAdapter = (typeof VMDK_ADAPTERS)[number];

/** The descriptor of a new disk in one file. `name`: of that file, for programs that look. */
export function encodeVmdkDescriptor(disk: {
  readonly cid: number;
  readonly createType: 'monolithicSparse' | 'streamOptimized';
  readonly sizeBytes: number;
  readonly name: string;
  /** The disk controller that the guest is to have (default ide) */
  readonly adapterType?: VmdkAdapter;
  /** Version of the virtual hardware (default 4) */
  readonly hardwareVersion?: number;
}): string {
  const sectors = disk.sizeBytes / SECTOR_BYTES;
  const { adapterType = 'ide', hardwareVersion = 4 } = disk;
  const heads = adapterType === 'ide' ? 16 : 255;
  const cylinders = Math.min(16_383, Math.floor(sectors / (heads * 63)));
  const name = disk.name.replace(/["\p{Cc}]/gu, '_').slice(0, VMDK_LIMITS.nameLength);
  return `# Disk DescriptorFile
version=1
CID=${disk.cid.toString(16).padStart(8, '0')}
parentCID=ffffffff
createType="${disk.createType}"

# Extent description
RW ${sectors} SPARSE "${name}"

# The Disk Data Base
#DDB

ddb.virtualHWVersion = "${hardwareVersion}"
ddb.geometry.cylinders = "${cylinders}"
ddb.geometry.heads = "${heads}"
ddb.geometry.sectors = "63"
ddb.adapterType = "${adapterType}"
`;
}

function decodeExtent(line: string): VmdkExtentLine {
  const match = /^(RW|RDONLY|NOACCESS)\s+(\S+)\s+(\S+)(?:\s+"([^"]*)"(?:\s+(\S+))?)?(?:\s.*)?$/.exec(line);
  const [, access, length, typeText, file, offset] = match ?? [];
  if (access === undefined || length === undefined) throw bad('ERR_WIRE_TEXT', `extent ${shown(line)}`);
  const type = EXTENT_TYPES.find((known) => known === typeText);
  if (type === undefined)
    throw bad('ERR_WIRE_VALUE', `extent of type ${shown(typeText ?? '')}, expected ${EXTENT_TYPES.join(', ')}`);
  const lengthBytes = sectors(length, 'extent length');
  if (lengthBytes === 0) throw bad('ERR_WIRE_VALUE', 'extent of no sectors');
  if ((type === 'ZERO') !== (file === undefined)) throw bad('ERR_WIRE_VALUE', `extent ${shown(line)}: its file`);
  if (file !== undefined && (file === '' || file.length > VMDK_LIMITS.nameLength)) {
    throw bad('ERR_WIRE_LIMIT', `extent name of ${file.length} characters`);
  }
  return {
    access: access as VmdkExtentLine['access'],
    lengthBytes,
    type,
    file,
    offset: offset === undefined ? 0 : sectors(offset, 'extent offset'),
  };
}

/** A number of sectors, as `bytes`; nothing but digits, so that no sign, fraction or exponent comes through. */
function sectors(text: string, what: string): number {
  const value = /^[0-9]{1,15}$/.test(text) ? Number(text) * SECTOR_BYTES : Number.NaN;
  if (!(value <= VMDK_LIMITS.sizeBytes)) throw bad('ERR_WIRE_VALUE', `${what} ${shown(text)}`);
  return value;
}

function hexadecimal(text: string | undefined, what: string): number {
  if (text === undefined || !/^[0-9a-fA-F]{1,8}$/.test(text))
    throw bad('ERR_WIRE_VALUE', `${what} ${shown(text ?? 'missing')}`);
  return Number.parseInt(text, 16);
}

function decodeText(bytes: Uint8Array): string {
  const nul = bytes.indexOf(0);
  const end = nul < 0 ? bytes.length : nul;
  for (let at = end; at < bytes.length; at++) {
    if (bytes[at] !== 0) throw bad('ERR_WIRE_TEXT', `NUL at ${end}, and more behind it`);
  }
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes.subarray(0, end));
  } catch (cause) {
    throw bad('ERR_WIRE_TEXT', 'not UTF-8', cause);
  }
}

function shown(text: string): string {
  return JSON.stringify(text.slice(0, 80));
}

function bad(code: WireErrorCode, why: string, cause?: unknown): WireError {
  return new WireError(code, `Cannot use the ${NAME}: ${why}`, { message: NAME, cause });
}
