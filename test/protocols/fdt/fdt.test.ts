import test from 'ava';
import { WireError } from '../../../protocols/bytes/mod.ts';
import { decodeFdt, encodeFdt, FDT_LIMITS, type Fdt, FdtNode, split64 } from '../../../protocols/fdt/mod.ts';
import { refusesEveryTruncation, survivesEveryByteChange } from '../../macros/codec.ts';

function sample(): Fdt {
  const root = new FdtNode('').cells('#address-cells', 2).cells('#size-cells', 2).text('model', 'sample');
  root.child('memory@80000000').text('device_type', 'memory').cells64('reg', 0x8000_0000, 0x1_0000_0000);
  root
    .child('soc')
    .flag('ranges')
    .child('uart@10000000')
    .text('compatible', 'ns16550a', 'ns16550')
    .bytes('odd', Uint8Array.of(1, 2, 3));
  return { root, reservations: [{ address: 0x8000_0000n, size: 0x1000n }], bootCpu: 1 };
}

/** Header words by name */
const WORD = {
  magic: 0,
  total: 1,
  struct: 2,
  strings: 3,
  reserved: 4,
  version: 5,
  compatible: 6,
  stringsSize: 8,
  structSize: 9,
};

function withWord(word: number, value: number): Uint8Array {
  const blob = encodeFdt(sample()).slice();
  new DataView(blob.buffer).setUint32(word * 4, value);
  return blob;
}

function wordOf(blob: Uint8Array, word: number): number {
  return new DataView(blob.buffer, blob.byteOffset).getUint32(word * 4);
}

/** A blob around a hand-made structure block. */
function around(structure: number[], strings = 'name\0'): Uint8Array {
  const blob = new Uint8Array(56 + structure.length * 4 + strings.length);
  const view = new DataView(blob.buffer);
  const header = [
    0xd00dfeed,
    blob.length,
    56,
    56 + structure.length * 4,
    40,
    17,
    16,
    0,
    strings.length,
    structure.length * 4,
  ];
  for (const [index, value] of header.entries()) view.setUint32(index * 4, value);
  for (const [index, value] of structure.entries()) view.setUint32(56 + index * 4, value);
  blob.set(new TextEncoder().encode(strings), 56 + structure.length * 4);
  return blob;
}

const BEGIN = 1;
const END = 2;
const PROP = 3;
const NOP = 4;
const FINISH = 9;
const A = 0x6100_0000;

test('encodeFdt() and decodeFdt() are inverse', (t) => {
  const blob = encodeFdt(sample());
  const tree = decodeFdt(blob);
  t.deepEqual([...encodeFdt(tree)], [...blob]);
  t.is(tree.bootCpu, 1);
  t.deepEqual(tree.reservations, [{ address: 0x8000_0000n, size: 0x1000n }]);
  t.deepEqual(tree.root.find('/memory@80000000')?.getCells('reg'), [0, 0x8000_0000, 1, 0]);
  t.deepEqual(tree.root.find('/soc/uart@10000000')?.getText('compatible'), ['ns16550a', 'ns16550']);
  t.is(tree.root.find('/soc/uart@10000000')?.getCells('odd'), undefined);
  t.is(tree.root.find('/soc/none'), undefined);
});

test('decodeFdt() refuses every truncation', (t) => {
  refusesEveryTruncation(t, encodeFdt(sample()), decodeFdt);
});

test('decodeFdt() survives every byte change', (t) => {
  survivesEveryByteChange(t, encodeFdt(sample()), decodeFdt);
});

test('decodeFdt() accepts bytes after the total size and NOP tokens', (t) => {
  const blob = encodeFdt(sample());
  const longer = new Uint8Array(blob.length + 64);
  longer.set(blob);
  t.is(decodeFdt(longer).root.children.length, 2);
  t.is(decodeFdt(around([NOP, BEGIN, 0, NOP, END, NOP, FINISH])).root.children.length, 0);
});

test('decodeFdt() refuses a header that lies about where its blocks are', (t) => {
  const blob = encodeFdt(sample());
  const cases: [string, Uint8Array][] = [
    ['magic', withWord(WORD.magic, 0xd00dfeee)],
    ['total size beyond the file', withWord(WORD.total, 0xffff_ffff)],
    ['total size below the blocks', withWord(WORD.total, 60)],
    ['structure outside', withWord(WORD.struct, 0x7fff_fffc)],
    ['structure over the header', withWord(WORD.struct, 0)],
    ['structure unaligned', withWord(WORD.struct, wordOf(blob, WORD.struct) + 1)],
    ['strings outside', withWord(WORD.strings, 0xffff_fff0)],
    ['strings over the structure', withWord(WORD.strings, wordOf(blob, WORD.struct) + 8)],
    ['reservations over the header', withWord(WORD.reserved, 8)],
    ['reservations outside', withWord(WORD.reserved, 0xffff_fff8)],
    ['structure size beyond the blob', withWord(WORD.structSize, 0xffff_fffc)],
    ['structure size over the strings', withWord(WORD.structSize, wordOf(blob, WORD.structSize) + 8)],
    ['strings size beyond the blob', withWord(WORD.stringsSize, 0xffff_ffff)],
    ['old version', withWord(WORD.version, 16)],
    ['version that needs a newer reader', withWord(WORD.compatible, 18)],
  ];
  for (const [name, bytes] of cases) t.throws(() => decodeFdt(bytes), { instanceOf: WireError }, name);
});

test('decodeFdt() refuses structures that do not nest', (t) => {
  const cases: [string, number[]][] = [
    ['no root', [FINISH]],
    ['a node that does not end', [BEGIN, 0, FINISH]],
    ['an end without a node', [END, FINISH]],
    ['two roots', [BEGIN, 0, END, BEGIN, 0, END, FINISH]],
    ['a named root', [BEGIN, A, END, FINISH]],
    ['a nameless child', [BEGIN, 0, BEGIN, 0, END, END, FINISH]],
    ['a property outside', [PROP, 0, 0, BEGIN, 0, END, FINISH]],
    ['a property after children', [BEGIN, 0, BEGIN, A, END, PROP, 0, 0, END, FINISH]],
    ['two children of one name', [BEGIN, 0, BEGIN, A, END, BEGIN, A, END, END, FINISH]],
    ['two properties of one name', [BEGIN, 0, PROP, 0, 0, PROP, 0, 0, END, FINISH]],
    ['a token that does not exist', [BEGIN, 0, 5, END, FINISH]],
    ['no end token', [BEGIN, 0, END]],
    ['tokens after the end', [BEGIN, 0, END, FINISH, NOP]],
    ['a property longer than the block', [BEGIN, 0, PROP, 0xffff_ffff, 0, END, FINISH]],
    ['a property name outside the strings', [BEGIN, 0, PROP, 0, 99, END, FINISH]],
    ['a name that does not end', [BEGIN, 0, BEGIN, 0x6161_6161]],
  ];
  t.is(decodeFdt(around([BEGIN, 0, PROP, 0, 0, END, FINISH])).root.properties.size, 1);
  for (const [name, structure] of cases) t.throws(() => decodeFdt(around(structure)), { instanceOf: WireError }, name);
  t.throws(() => decodeFdt(around([BEGIN, 0, PROP, 0, 0, END, FINISH], 'name')), { instanceOf: WireError });
  t.throws(() => decodeFdt(around([BEGIN, 0, PROP, 0, 0, END, FINISH], 'a b\0')), { instanceOf: WireError });
});

test('decodeFdt() refuses trees that are too deep, too wide or too large', (t) => {
  const depth = FDT_LIMITS.depth;
  const deep = (levels: number) => [
    BEGIN,
    0,
    ...Array.from({ length: levels - 1 }, () => [BEGIN, A]).flat(),
    ...new Array<number>(levels).fill(END),
    FINISH,
  ];
  t.is(decodeFdt(around(deep(depth))).root.children.length, 1);
  t.throws(() => decodeFdt(around(deep(depth + 1))), { code: 'ERR_WIRE_LIMIT' });
  // Node names in base 16 on four letters, all different
  const name = (index: number) => [0, 4, 8, 12].reduce((word, shift) => word * 256 + 0x61 + ((index >> shift) & 15), 0);
  const wide = Array.from({ length: FDT_LIMITS.nodes }, (_, index) => [BEGIN, name(index), 0, END]).flat();
  t.throws(() => decodeFdt(around([BEGIN, 0, ...wide, END, FINISH])), { code: 'ERR_WIRE_LIMIT' });
  t.throws(() => decodeFdt(new Uint8Array(FDT_LIMITS.blobBytes + 1)), { code: 'ERR_WIRE_LIMIT' });
  const long = new Array<number>(64).fill(0x6161_6161);
  t.throws(() => decodeFdt(around([BEGIN, 0, BEGIN, ...long, 0, END, END, FINISH])), { code: 'ERR_WIRE_LIMIT' });
});

test('decodeFdt() refuses reservations without an end', (t) => {
  const blob = new Uint8Array(40 + 16 * (FDT_LIMITS.reservations + 4)).fill(1);
  const view = new DataView(blob.buffer);
  for (const [index, value] of [0xd00dfeed, blob.length, 0, 0, 40, 17, 16, 0, 0, 0].entries()) {
    view.setUint32(index * 4, value);
  }
  t.throws(() => decodeFdt(blob), { code: 'ERR_WIRE_LIMIT' });
});

test('FdtNode refuses cells and sizes that do not fit', (t) => {
  t.throws(() => new FdtNode('').cells('a', -1), { instanceOf: RangeError });
  t.throws(() => new FdtNode('').cells('a', 2 ** 32), { instanceOf: RangeError });
  t.throws(() => split64(2 ** 53), { instanceOf: RangeError });
  t.deepEqual(split64(0x4_0000_0001), [4, 1]);
});
