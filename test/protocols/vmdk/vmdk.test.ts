import test from 'ava';
import { WireError } from '../../../protocols/bytes/mod.ts';
import {
  decodeVmdkDescriptor,
  decodeVmdkFooter,
  decodeVmdkGrainMarker,
  decodeVmdkSparseHeader,
  encodeVmdkDescriptor,
  encodeVmdkGrainMarker,
  encodeVmdkSparseHeader,
  looksLikeVmdkSparse,
  VMDK_FLAG,
  VMDK_NO_PARENT,
  type VmdkSparseHeader,
} from '../../../protocols/vmdk/mod.ts';
import { refusesEveryTruncation, roundTrips, survivesEveryByteChange } from '../../macros/codec.ts';

const MIB = 1 << 20;
const header: VmdkSparseHeader = {
  version: 1,
  flags: VMDK_FLAG.newLines | VMDK_FLAG.redundantTables,
  sizeBytes: 10 * MIB,
  grainBytes: 64 << 10,
  descriptorOffset: 512,
  descriptorBytes: 10_240,
  tableEntries: 512,
  redundantDirectoryOffset: 10_752,
  directoryOffset: 13_312,
  overheadBytes: 65_536,
  uncleanShutdown: false,
  compression: 0,
};

test('the sparse header keeps its fields, truncations are refused, every byte change survived', (t) => {
  roundTrips(t, header, encodeVmdkSparseHeader, decodeVmdkSparseHeader);
  roundTrips(t, { ...header, directoryOffset: undefined }, encodeVmdkSparseHeader, decodeVmdkSparseHeader);
  refusesEveryTruncation(t, encodeVmdkSparseHeader(header), decodeVmdkSparseHeader);
  survivesEveryByteChange(t, encodeVmdkSparseHeader(header), decodeVmdkSparseHeader);
  t.true(looksLikeVmdkSparse(encodeVmdkSparseHeader(header)));
  t.false(looksLikeVmdkSparse(Uint8Array.of(0x4b, 0x44)));
});

for (const [name, at, bytes, value, expected] of [
  ['version 4', 4, 4, 4n, /version 4/],
  ['version 0', 4, 4, 0n, /version 0/],
  ['capacity 2^63', 12, 8, 2n ** 63n, /capacity 9223372036854775808/],
  ['grains of nothing', 20, 8, 0n, /grains of 0 bytes/],
  ['grains of 2^40 sectors', 20, 8, 2n ** 40n, /grain size 1099511627776/],
  ['grains of 3 sectors', 20, 8, 3n, /grains of 1536/],
  ['a descriptor of 2 MiB', 36, 8, 4096n, /descriptor of 2097152/],
  ['grain tables of nothing', 44, 4, 0n, /tables of 0/],
  ['grain tables of 513 entries', 44, 4, 513n, /tables of 513/],
  ['a grain directory at 2^62', 56, 8, 2n ** 62n, /directory at sector/],
  ['new lines of another system', 73, 4, 0x0a0a0a0an, /transfer as text/],
  ['compression 2', 77, 2, 2n, /compression 2/],
  ['compression without its flag', 77, 2, 1n, /its flag differ/],
] as const) {
  test(`§8.3 VMDK: decodeVmdkSparseHeader() refuses ${name}`, (t) => {
    const changed = encodeVmdkSparseHeader(header);
    const field = new Uint8Array(8);
    new DataView(field.buffer).setBigUint64(0, value, true);
    changed.set(field.subarray(0, bytes), at);
    t.throws(() => decodeVmdkSparseHeader(changed), { instanceOf: WireError, message: expected });
  });
}

test('§8.3 VMDK: decodeVmdkSparseHeader() refuses a disk whose grain directory would be too large', (t) => {
  const large = { ...header, sizeBytes: 2 ** 47, grainBytes: 512, tableEntries: 1 };
  t.throws(() => decodeVmdkSparseHeader(encodeVmdkSparseHeader(large)), { code: 'ERR_WIRE_LIMIT' });
});

test('the footer of a stream is read between its markers, and truncations are refused', (t) => {
  const bytes = new Uint8Array(1536);
  const view = new DataView(bytes.buffer);
  view.setBigUint64(0, 1n, true);
  view.setUint32(12, 3, true);
  bytes.set(encodeVmdkSparseHeader(header), 512);
  t.deepEqual(decodeVmdkFooter(bytes), header);
  refusesEveryTruncation(t, bytes, decodeVmdkFooter);
  survivesEveryByteChange(t, bytes, decodeVmdkFooter);
  view.setUint32(1024 + 12, 1, true);
  t.throws(() => decodeVmdkFooter(bytes), { instanceOf: WireError, message: /end marker type/ });
});

test('a grain marker keeps its fields', (t) => {
  roundTrips(
    t,
    { offset: 65_536n, dataBytes: 1000 },
    (m) => encodeVmdkGrainMarker(Number(m.offset), m.dataBytes),
    decodeVmdkGrainMarker,
  );
  refusesEveryTruncation(t, encodeVmdkGrainMarker(0, 1), decodeVmdkGrainMarker);
});

const TEXT = `# Disk DescriptorFile
version=1
encoding="UTF-8"
CID=fffffffe
parentCID=ffffffff
isNativeSnapshot="no"
createType="twoGbMaxExtentFlat"

# Extent description
RW 4192256 FLAT "disk-f001.vmdk" 0
RDONLY 2101248 FLAT "disk f002.vmdk" 128
RW 100 ZERO

# The Disk Data Base
#DDB
ddb.adapterType = "ide"
ddb.uuid = "60 00 C2 9a 5b"
`;
const utf8 = (text: string) => new TextEncoder().encode(text);

test('decodeVmdkDescriptor() reads values and extents', (t) => {
  t.deepEqual(decodeVmdkDescriptor(utf8(TEXT)), {
    cid: 0xffff_fffe,
    parentCid: VMDK_NO_PARENT,
    createType: 'twoGbMaxExtentFlat',
    parentName: undefined,
    extents: [
      { access: 'RW', lengthBytes: 4_192_256 * 512, type: 'FLAT', file: 'disk-f001.vmdk', offset: 0 },
      { access: 'RDONLY', lengthBytes: 2_101_248 * 512, type: 'FLAT', file: 'disk f002.vmdk', offset: 65_536 },
      { access: 'RW', lengthBytes: 51_200, type: 'ZERO', file: undefined, offset: 0 },
    ],
  });
  t.deepEqual(decodeVmdkDescriptor(utf8(TEXT.replaceAll('\n', '\r\n'))), decodeVmdkDescriptor(utf8(TEXT)));
  const padded = new Uint8Array(10_240);
  padded.set(utf8(TEXT));
  t.deepEqual(decodeVmdkDescriptor(padded), decodeVmdkDescriptor(utf8(TEXT)));
});

test('decodeVmdkDescriptor() survives every byte change and every cut', (t) => {
  survivesEveryByteChange(t, utf8(TEXT), decodeVmdkDescriptor);
  for (let length = 0; length < TEXT.length; length++) {
    try {
      decodeVmdkDescriptor(utf8(TEXT.slice(0, length)));
    } catch (error) {
      t.true(error instanceof WireError, `${length}: ${String(error)}`);
    }
  }
  t.throws(() => decodeVmdkDescriptor(utf8(TEXT.slice(0, 150))), { instanceOf: WireError });
});

test('encodeVmdkDescriptor() is read back, whatever the file is called', (t) => {
  const disk = { cid: 0x1234, createType: 'monolithicSparse', sizeBytes: 10 * MIB } as const;
  for (const name of ['disk.vmdk', 'a"b\nRW 1 FLAT "x', 'ü'.repeat(200)]) {
    const { cid, createType, extents } = decodeVmdkDescriptor(utf8(encodeVmdkDescriptor({ ...disk, name })));
    t.is(cid, 0x1234);
    t.is(createType, 'monolithicSparse');
    t.is(extents.length, 1);
    t.is(extents[0]!.lengthBytes, 10 * MIB);
  }
});

for (const [name, text, expected] of [
  ['a NUL in its text', TEXT.replace('CID', 'C\0ID'), /NUL at/],
  ['2 MiB of text', `${TEXT}${'#\n'.repeat(MIB)}`, /limit is 1048575/],
  ['a negative size', TEXT.replace('4192256', '-4192256'), /extent length "-4192256"/],
  ['a size with an exponent', TEXT.replace('4192256', '1e3'), /extent length "1e3"/],
  ['a size beyond any file', TEXT.replace('4192256', '999999999999999'), /extent length/],
  ['an extent of nothing', TEXT.replace('4192256', '0'), /no sectors/],
  ['a negative offset', TEXT.replace('" 128', '" -1'), /extent offset "-1"/],
  ['an unknown kind of extent', TEXT.replace('ZERO', 'VMFSRDM "x"'), /VMFSRDM/],
  ['no version', TEXT.replace('version=1\n', ''), /version "missing"/],
  ['version 9', TEXT.replace('version=1', 'version=9'), /version "9"/],
  ['no createType', TEXT.replace(/createType.*\n/, ''), /createType is missing/],
  ['createType twice', `${TEXT}createType="vmfs"\n`, /createType twice/],
  ['no extents', TEXT.replaceAll(/^R.*\n/gm, ''), /no extents/],
  ['a CID that is no number', TEXT.replace('CID=fffffffe', 'CID=xyz'), /CID "xyz"/],
  ['a line that is nothing', `${TEXT}hello\n`, /neither a value nor an extent/],
  ['an extent without a name', TEXT.replace('"disk-f001.vmdk" 0', ''), /its file/],
  ['a name of 300 characters', TEXT.replace('disk-f001', 'x'.repeat(300)), /extent name of 305/],
  ['4097 extents', `${TEXT}${'RW 1 ZERO\n'.repeat(4097)}`, /more than 4096/],
  ['bytes that are no UTF-8', undefined, /not UTF-8/],
] as const) {
  test(`§8.3 VMDK: decodeVmdkDescriptor() refuses ${name}`, (t) => {
    const bytes = text === undefined ? Uint8Array.of(...utf8(TEXT), 0xff) : utf8(text);
    t.throws(() => decodeVmdkDescriptor(bytes), { instanceOf: WireError, message: expected });
  });
}

test('decodeVmdkDescriptor() takes time in proportion to the text, whatever a line is made of', (t) => {
  const gap = ' '.repeat(300_000);
  const word = 'x'.repeat(300_000);
  const startedMs = performance.now();
  for (const line of [
    `a=${gap}x y`,
    `a${gap}b`,
    `${gap}=${gap}x y`,
    `a="${gap}${gap}`,
    `RW${gap}1${gap}FLAT${gap}"f"${gap}0${gap}\u2028${gap}`,
    `RW ${word} ${word} "${gap}`,
    `RW 1 FLAT "${word}" ${word}\u2028`,
  ]) {
    const text = `# Disk DescriptorFile\nversion=1\n${line}\n`;
    t.throws(() => decodeVmdkDescriptor(new TextEncoder().encode(text)), { instanceOf: WireError }, line.slice(0, 20));
  }
  t.true(performance.now() - startedMs < 2000, `${performance.now() - startedMs} ms`);
});
