import test from 'ava';
import { WireError } from '../../../protocols/bytes/mod.ts';
import { decodeElfSymbols, decodeKallsyms, decodeSystemMap } from '../../../protocols/symbols/mod.ts';
import { survivesEveryByteChange } from '../../macros/codec.ts';
import { sampleElf } from '../../macros/programs.ts';
import { imageWithKallsyms, withSymbolTable } from '../../macros/symbols.ts';

const ELF = sampleElf([{ physical: 0x8000_0000, bytes: Uint8Array.of(1, 2, 3, 4) }]);
const FILE = withSymbolTable(ELF, [
  { name: 'main', address: 0x8000_0000n, sizeBytes: 4 },
  { name: '$xrv64i2p1', address: 0x8000_0000n, type: 0 },
  { name: '.L12', address: 0x8000_0002n, type: 0 },
  { name: 'label', address: 0x8000_0002n, type: 0 },
  { name: 'object', address: 0x8000_0003n, type: 1 },
  { name: 'elsewhere', address: 0n, section: 0 },
]);
const text = (lines: string) => new TextEncoder().encode(lines);

test('decodeElfSymbols() gives functions and labels, not data, mapping symbols and what is undefined', (t) => {
  t.deepEqual(decodeElfSymbols(FILE), [
    { name: 'main', address: 0x8000_0000n, sizeBytes: 4 },
    { name: 'label', address: 0x8000_0002n, sizeBytes: 0 },
  ]);
  t.deepEqual(decodeElfSymbols(ELF), [], 'stripped');
  t.is(decodeElfSymbols(withSymbolTable(ELF, [{ name: 'f', address: 1n }], 11)).length, 1, 'the dynamic table');
});

test('decodeElfSymbols() survives truncations and every byte change', (t) => {
  for (let length = 0; length < FILE.length; length++) {
    const error = t.throws(
      () => decodeElfSymbols(FILE.slice(0, length)),
      { instanceOf: WireError },
      `cut at ${length}`,
    );
    if (error === undefined) return;
  }
  survivesEveryByteChange(t, FILE, decodeElfSymbols);
});

test('decodeElfSymbols() refuses other machines, and tables that lie', (t) => {
  const changed = (write: (view: DataView) => void): Uint8Array => {
    const file = FILE.slice();
    write(new DataView(file.buffer));
    return file;
  };
  const headers = Number(new DataView(FILE.buffer).getBigUint64(40, true));
  const cases: [string, (view: DataView) => void][] = [
    ['x86-64', (view) => view.setUint16(18, 62, true)],
    ['section headers beyond the file', (view) => view.setBigUint64(40, 1n << 60n, true)],
    ['a table beyond the file', (view) => view.setBigUint64(headers + 64 + 24, 1n << 40n, true)],
    ['strings in no section', (view) => view.setUint32(headers + 64 + 40, 77, true)],
    ['strings without an end', (view) => view.setBigUint64(headers + 128 + 32, 3n, true)],
  ];
  for (const [name, write] of cases) t.throws(() => decodeElfSymbols(changed(write)), { instanceOf: WireError }, name);
});

test('decodeSystemMap() takes code symbols of System.map and /proc/kallsyms', (t) => {
  t.deepEqual(
    decodeSystemMap(
      text('ffffffff80000000 T _start\nffffffff80001000 d data\n0000000000000010 W weak\nff t m\t[ext4]'),
    ),
    [
      { name: '_start', address: 0xffff_ffff_8000_0000n, sizeBytes: 0 },
      { name: 'weak', address: 0x10n, sizeBytes: 0 },
      { name: 'm', address: 0xffn, sizeBytes: 0 },
    ],
  );
  t.deepEqual(decodeSystemMap(text('')), []);
});

test('decodeSystemMap() refuses other text, binary files and endless lines', (t) => {
  for (const [name, file] of [
    ['prose', text('hello world\n')],
    ['address of 17 digits', text('0ffffffff80000000 T _start\n')],
    ['binary', Uint8Array.of(0x7f, 0x45, 0x4c, 0x46, 0xff, 0xfe)],
    ['a line without an end', new Uint8Array(1 << 20).fill(0x61)],
  ] as const) {
    t.throws(() => decodeSystemMap(file), { instanceOf: WireError }, name);
  }
  survivesEveryByteChange(t, text('ffffffff80000000 T _start\nff t m\n'), decodeSystemMap);
});

const LINUX = Array.from({ length: 600 }, (_, index) => ({
  kind: index === 5 ? 'd' : index % 2 === 0 ? 'T' : 't',
  name: index === 0 ? '_start' : index === 7 ? `long_${'x'.repeat(200)}` : `sched_${index}`,
  offset: index * 16,
}));

test('decodeKallsyms() finds the table of a Linux image, of either layout', (t) => {
  for (const relative of [true, false]) {
    const found = decodeKallsyms(imageWithKallsyms(LINUX, relative));
    t.is(found?.symbols.length, 599, 'data is left out');
    t.deepEqual(found?.symbols[0], { name: '_start', address: 0n, sizeBytes: 0 });
    t.deepEqual(found?.symbols[6], { name: `long_${'x'.repeat(200)}`, address: 112n, sizeBytes: 0 });
    t.deepEqual(found?.symbols.at(-1), { name: 'sched_599', address: 599n * 16n, sizeBytes: 0 });
  }
});

test('decodeKallsyms() gives nothing for images without a table, cut ones and broken ones, and never throws', (t) => {
  t.is(decodeKallsyms(new Uint8Array(0)), undefined);
  t.is(decodeKallsyms(new Uint8Array(1 << 20)), undefined);
  t.is(decodeKallsyms(new Uint8Array(1 << 20).fill(0x30)), undefined);
  const image = imageWithKallsyms(LINUX.slice(0, 40), true);
  for (let length = 0; length < image.length; length += 7) t.is(decodeKallsyms(image.slice(0, length)), undefined);
  for (let index = 0; index < image.length; index++) {
    const changed = image.slice();
    changed[index]! ^= 0x81;
    t.notThrows(() => decodeKallsyms(changed), `byte ${index}`);
  }
});

test('decodeElfSymbols() refuses symbols that share one long name, of which each would be a text of its own', (t) => {
  const count = 50_000;
  const long = 'x'.repeat(4000);
  const file = withSymbolTable(
    ELF,
    Array.from({ length: count }, (_, index) => ({ name: index === 0 ? long : '', address: BigInt(index) })),
  );
  const view = new DataView(file.buffer);
  const tableAt = Math.ceil((ELF.length + 1 + long.length + count) / 8) * 8;
  for (let index = 0; index < count; index++) view.setUint32(tableAt + 24 * index, 1, true);
  const startedMs = performance.now();
  t.throws(() => decodeElfSymbols(file), { instanceOf: WireError, message: /characters in all/ });
  t.true(performance.now() - startedMs < 20_000, `${performance.now() - startedMs} ms`);
});

test('decodeKallsyms() gives up on an image in which a table seems to begin everywhere', (t) => {
  const good = imageWithKallsyms(LINUX, false);
  const digits = Uint8Array.from({ length: 20 }, (_, i) => (i % 2 === 0 ? 0x30 + i / 2 : 0));
  let tokensAt = Buffer.from(good).indexOf(digits);
  for (let token = 0; token < 48; token++) tokensAt = good.lastIndexOf(0, tokensAt - 2) + 1;
  // A word that is a count of names, and reads as a name of three tokens as well
  const count = 0x0001_0303;
  const words = new Uint32Array(1 << 17).fill(count).fill(0, -64);
  const markers = Uint32Array.from({ length: Math.ceil(count / 256) }, (_, index) => index * 1024);
  const image = Buffer.concat([
    Buffer.alloc(64),
    Buffer.from(words.buffer),
    Buffer.from(markers.buffer),
    good.subarray(tokensAt),
  ]);
  const startedMs = performance.now();
  t.is(decodeKallsyms(image), undefined);
  t.true(performance.now() - startedMs < 10_000, `${performance.now() - startedMs} ms`);
});

test('names of symbols have no control characters, which a log would bring to a terminal', (t) => {
  const bad = 'a\x1b]0;title\x07b';
  const [first] = decodeElfSymbols(withSymbolTable(ELF, [{ name: bad, address: 1n }]));
  t.is(first?.name, 'a?]0;title?b');
  t.is(decodeSystemMap(text(`ff t ${bad}\n`))[0]?.name, 'a?]0;title?b');
  const symbols = LINUX.map((symbol, index) => (index === 3 ? { ...symbol, name: 'sched_\x9b' } : symbol));
  for (const { name } of decodeKallsyms(imageWithKallsyms(symbols, true))?.symbols ?? []) t.false(/\p{Cc}/u.test(name));
});
