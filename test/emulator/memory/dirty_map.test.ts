import test from 'ava';
import { DirtyMap } from '../../../emulator/memory/dirty_map.ts';
import { planMemory } from '../../../emulator/memory/layout.ts';

const PAGES = 512;
const layout = planMemory(1, PAGES * 4096);
const READER = 0x01;
const OTHER = 0x80;

function made(): { map: DirtyMap; bytes: Uint8Array } {
  const bytes = new Uint8Array(new SharedArrayBuffer(layout.dirty + PAGES + 16));
  return { map: new DirtyMap(bytes, layout, PAGES), bytes };
}

test('harvest() gives the pages that were stored to, ascending, once to each reader', (t) => {
  const { map, bytes } = made();
  for (const page of [500, 3, 77]) bytes[layout.dirty + page] = 0xff;
  t.deepEqual([...map.harvest(READER, 0, PAGES)], [3, 77, 500]);
  t.deepEqual([...map.harvest(READER, 0, PAGES)], []);
  t.deepEqual([...map.harvest(OTHER, 0, PAGES)], [3, 77, 500]);
});

test('harvest() begins where it is told, gives no more than it may, and clears no more than it gives', (t) => {
  const { map } = made();
  map.markAll(READER);
  t.deepEqual([...map.harvest(READER, 10, 3)], [10, 11, 12]);
  t.deepEqual([...map.harvest(READER, 10, 2)], [13, 14]);
  t.is(map.harvest(READER, 0, 1 << 30).length, PAGES - 5);
});

test('a map of RAM reaches over no byte behind it', (t) => {
  const { map, bytes } = made();
  bytes[layout.dirty + PAGES] = 0xff;
  map.markAll(READER);
  t.is(bytes[layout.dirty + PAGES], 0xff);
  t.is(map.harvest(READER, 0, PAGES + 10).length, PAGES);
});
