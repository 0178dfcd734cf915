import test from 'ava';
import { BootError } from '../../../emulator/machine/boot_error.ts';
import { collectSymbols } from '../../../emulator/trace/guest_symbols.ts';
import { SymbolTable, sortSymbols } from '../../../emulator/trace/symbols.ts';

test('find() gives the symbol that an address is in, not the one before it', (t) => {
  const table = new SymbolTable(
    sortSymbols([
      { name: 'late', address: 0xffff_ffff_8000_0000n, sizeBytes: 0 },
      { name: 'sized', address: 0x1000n, sizeBytes: 8 },
      { name: 'label', address: 0x1000n, sizeBytes: 0 },
      { name: 'open', address: 0x2000n, sizeBytes: 0 },
    ]),
  );
  t.is(table.size, 3);
  t.is(table.find(0xfffn), undefined);
  t.deepEqual(table.find(0x1000n), { name: 'sized', offset: 0 });
  t.deepEqual(table.find(0x1007n), { name: 'sized', offset: 7 });
  t.is(table.find(0x1008n), undefined, 'behind its end');
  t.deepEqual(table.find(0x2fffn), { name: 'open', offset: 0xfff });
  t.is(table.find(0x2000n + (1n << 20n)), undefined, 'too far');
  t.deepEqual(table.find(0xffff_ffff_8000_0010n), { name: 'late', offset: 16 });
});

test('collectSymbols() reads System.map files and refuses others by their number', (t) => {
  const map = new TextEncoder().encode('ffffffff80000000 T _start\nffffffff80000100 D data\n');
  const table = new SymbolTable(collectSymbols({ files: [map] }));
  t.deepEqual(table.find(0xffff_ffff_8000_0004n), { name: '_start', offset: 4 });
  t.is(table.size, 1);
  const error = t.throws(() => collectSymbols({ files: [map, new TextEncoder().encode('hello\n')] }), {
    instanceOf: BootError,
  });
  t.regex(error.message, /Cannot use symbol file 2: .*line 1/);
});
