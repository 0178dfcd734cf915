import process from 'node:process';
import test from 'ava';
import {
  countPresent,
  findRamMapping,
  parseMaps,
  parseResidentBytes,
  readProcessMemory,
} from '../../../bench/machine/process_memory.ts';
import { wasm } from '../../../emulator/wasm/platform.ts';

const MAPS = `55d0c0000000-55d0c0100000 r-xp 00000000 fe:00 1234  /usr/bin/node
7f0000000000-7f0000200000 rw-p 00000000 00:00 0 
7f0000200000-7f0000300000 rw-p 00000000 00:00 0 
7f0000400000-7f0001400000 rw-p 00000000 00:00 0 
7f0002000000-7f0042000000 ---p 00000000 00:00 0 
`;

test('parseMaps() reads start, end and permissions of each line', (t) => {
  const maps = parseMaps(MAPS);
  t.is(maps.length, 5);
  t.deepEqual(maps[0], { start: 0x55d0c0000000, end: 0x55d0c0100000, permissions: 'r-xp' });
});

test('findRamMapping() takes the smallest writable one that can hold the RAM, and joins neighbours', (t) => {
  const maps = parseMaps(MAPS);
  t.is(findRamMapping(maps, 0x1000)?.start, 0x7f0000000000);
  t.is(findRamMapping(maps, 0x300000)?.end, 0x7f0000300000, 'two that touch are one');
  t.is(findRamMapping(maps, 0x300001)?.start, 0x7f0000400000);
  t.is(findRamMapping(maps, 0x2000000), undefined, 'reserved addresses hold nothing');
});

test('countPresent() looks at bit 63 of each entry', (t) => {
  const entries = new Uint8Array(24);
  entries[7] = 0x81;
  entries[15] = 0x01;
  entries[23] = 0x80;
  t.is(countPresent(entries), 2);
});

test('parseResidentBytes() reads VmRSS', (t) => {
  t.is(parseResidentBytes('Name:\tnode\nVmHWM:\t  900 kB\nVmRSS:\t     512 kB\n'), 524_288);
  t.throws(() => parseResidentBytes('Name:\tnode\n'), { message: /Cannot read VmRSS/ });
});

const onLinux = process.platform === 'linux' ? test : test.skip;
onLinux('readProcessMemory() counts the pages of a memory that were touched, and them alone', (t) => {
  const MIB = 1 << 20;
  const pages = 4096;
  const memory = new wasm.Memory({ initial: pages, maximum: pages, shared: true });
  const bytes = new Uint8Array(memory.buffer);
  const ramBytes = pages * 65536 - 16 * MIB;
  for (let at = 16 * MIB; at < 24 * MIB; at += 4096) bytes[at] = 1;
  for (let at = 0; at < MIB; at += 4096) bytes[at] = 1;
  const before = readProcessMemory(process.pid, ramBytes, 16 * MIB);
  t.is(before.ramBytes, 8 * MIB);
  t.is(before.otherBytes, before.residentBytes - before.ramBytes);
  bytes[100 * MIB] = bytes[0]!;
  t.is(readProcessMemory(process.pid, ramBytes, 16 * MIB).ramBytes, 8 * MIB + 4096);
});
