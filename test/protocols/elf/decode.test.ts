import test from 'ava';
import { byteSource, WireError } from '../../../protocols/bytes/mod.ts';
import { decodeElf as decodeElfSource, isElf } from '../../../protocols/elf/mod.ts';
import { refusesEveryTruncation, survivesEveryByteChange } from '../../macros/codec.ts';
import { sampleElf } from '../../macros/programs.ts';

const decodeElf = (file: Uint8Array) => decodeElfSource(byteSource(file));
const text = { physical: 0x8000_0000, bytes: Uint8Array.of(1, 2, 3, 4) };
const data = { physical: 0x8000_1000, bytes: Uint8Array.of(5), memoryBytes: 0x100 };

/** A valid file with one field written over. */
function changed(write: (view: DataView) => void): Uint8Array {
  const file = sampleElf([text, data]);
  write(new DataView(file.buffer));
  return file;
}

test('decodeElf() gives segments by address and the entry', (t) => {
  const program = decodeElf(sampleElf([data, text], 0x8000_0000n));
  t.is(program.entry, 0x8000_0000n);
  t.is(program.physicalEntry, 0x8000_0000);
  t.deepEqual(
    program.segments.map((segment) => [segment.physicalAddress, segment.fileBytes, segment.memoryBytes]),
    [
      [0x8000_0000, 4, 4],
      [0x8000_1000, 1, 0x100],
    ],
  );
  t.true(isElf(sampleElf([text])));
  t.false(isElf(Uint8Array.of(0x7f, 0x45)));
});

test('decodeElf() moves a virtual entry to where its segment is loaded', (t) => {
  const kernel = sampleElf([{ ...text, virtual: 0xffff_ffff_8000_0000n }], 0xffff_ffff_8000_0002n);
  t.is(decodeElf(kernel).physicalEntry, 0x8000_0002);
});

test('decodeElf() refuses every truncation', (t) => {
  refusesEveryTruncation(t, sampleElf([text, data]), decodeElf);
});

test('decodeElf() survives every byte change', (t) => {
  survivesEveryByteChange(t, sampleElf([text, data]), decodeElf);
});

test('decodeElf() refuses files for other machines and other uses', (t) => {
  const cases: [string, (view: DataView) => void][] = [
    ['32-bit', (view) => view.setUint8(4, 1)],
    ['big-endian', (view) => view.setUint8(5, 2)],
    ['relocatable object', (view) => view.setUint16(16, 1, true)],
    ['x86-64', (view) => view.setUint16(18, 62, true)],
    ['program headers of another size', (view) => view.setUint16(54, 32, true)],
    ['nothing to load', (view) => view.setUint16(56, 0, true)],
    ['more program headers than any linker makes', (view) => view.setUint16(56, 0xffff, true)],
  ];
  for (const [name, write] of cases) t.throws(() => decodeElf(changed(write)), { instanceOf: WireError }, name);
});

test('decodeElf() refuses program headers that lie', (t) => {
  const cases: [string, (view: DataView) => void][] = [
    ['headers beyond the file', (view) => view.setBigUint64(32, 1n << 40n, true)],
    ['headers beyond 2^53', (view) => view.setBigUint64(32, (1n << 64n) - 1n, true)],
    ['segment beyond the file', (view) => view.setBigUint64(64 + 8, 1n << 30n, true)],
    ['segment offset that wraps', (view) => view.setBigUint64(64 + 8, (1n << 64n) - 2n, true)],
    ['more bytes than memory', (view) => view.setBigUint64(64 + 40, 3n, true)],
    ['bytes beyond the file', (view) => view.setBigUint64(64 + 32, 1n << 50n, true)],
    ['memory that wraps', (view) => view.setBigUint64(64 + 40, (1n << 64n) - 1n, true)],
    ['segments that overlap', (view) => view.setBigUint64(64 + 24, 0x8000_0fffn, true)],
    ['entry beyond 2^53 and in no segment', (view) => view.setBigUint64(24, 1n << 60n, true)],
  ];
  for (const [name, write] of cases) t.throws(() => decodeElf(changed(write)), { instanceOf: WireError }, name);
});
