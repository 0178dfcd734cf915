import test from 'ava';
import { readCounters } from '../../../emulator/hart/counters.ts';
import { encode } from '../../../emulator/isa/encode.ts';
import { ChangingPages } from '../../../emulator/translator/changing_pages.ts';
import { CodeMemory, MACHINE_CODE_BYTES } from '../../../emulator/translator/code_memory.ts';
import { wasm } from '../../../emulator/wasm/platform.ts';
import { BareHart, RAM } from '../../fixtures/bare_hart.ts';
import { collectGarbage } from '../../fixtures/collect_garbage.ts';

const HOT_AFTER = 4;
const FIRST_PAGE = RAM + 0x5_0000;
const PAGE = 4096;

/** Modules that code memory of 2 MiB has room for, at 20 KiB each and a little code */
const CODE_BYTES = 2 << 20;
const ROOM = Math.floor(CODE_BYTES / (20 << 10));

const counters = (machine: BareHart) => {
  const read = readCounters(machine.memory.buffer as SharedArrayBuffer, machine.hart.base);
  return (name: string): number => Number(read.get(name)!);
};

/** A loop that is unlike all others, so that no two share a module in the engine; run until it is hot. */
function runNewLoop(machine: BareHart, address: number, number: number): void {
  machine.code(address, [
    encode('addi', { rd: 10, rs1: 10, imm: (number % 2047) + 1 }),
    encode('addi', { rd: 11, rs1: 11, imm: Math.floor(number / 2047) + 1 }),
    encode('jal', { rd: 0, imm: -8 }),
  ]);
  machine.hart.flushInstructions();
  machine.hart.pc = BigInt(address);
  machine.hart.step(200);
}

test('CodeMemory is full by bytes, by what was dropped until it is collected, and collects only what is worth it', (t) => {
  let collections = 0;
  const memory = new CodeMemory({ limitBytes: 1 << 20, collect: () => collections++ });
  let modules = 0;
  for (; !memory.isFull; modules++) memory.add(0);
  t.true(modules > 40 && modules < 60, `${modules} empty modules`);
  memory.drop();
  t.is(collections, 1);
  t.false(memory.isFull);
  memory.add(1 << 20);
  t.true(memory.isFull, 'one large module');
  memory.drop();
  t.is(collections, 2);
  memory.add(1 << 10);
  memory.drop();
  t.is(collections, 2, 'hardly anything');
  for (modules = 0; !memory.isFull; modules++) memory.add(0);
  t.true(modules > 40);
});

test('CodeMemory: harts share what the machine may take, down to a least share', (t) => {
  t.is(CodeMemory.limitFor(1), MACHINE_CODE_BYTES);
  t.is(CodeMemory.limitFor(2), MACHINE_CODE_BYTES / 2);
  t.is(CodeMemory.limitFor(8), 24 << 20);
});

test('A guest that makes new code for ever keeps no more modules than fit, and the collector gets the others', async (t) => {
  const made: WeakRef<object>[] = [];
  const { Module } = wasm;
  let collections = 0;
  const machine = new BareHart({ hotAfter: HOT_AFTER, codeBytes: CODE_BYTES, collect: () => collections++ });
  wasm.Module = class extends Module {
    constructor(bytes: Uint8Array) {
      super(bytes);
      made.push(new WeakRef(this));
    }
  };
  t.teardown(() => {
    wasm.Module = Module;
  });
  const loops = 4 * ROOM;
  for (let i = 0; i < loops; i++) runNewLoop(machine, FIRST_PAGE + i * PAGE, i);
  const read = counters(machine);
  t.is(read('modules-translated'), loops);
  t.true(read('translation-flushes') >= 3, `${read('translation-flushes')} flushes`);
  t.is(collections, read('translation-flushes'));
  // What a job has seen lives until its end
  await new Promise((resolve) => setTimeout(resolve, 10));
  collectGarbage();
  const alive = made.filter((module) => module.deref() !== undefined).length;
  t.true(alive <= ROOM, `${alive} of ${loops} modules are alive, there is room for ${ROOM}`);
  // And what is forgotten still runs, by either engine
  machine.hart.pc = BigInt(FIRST_PAGE);
  machine.hart.setX(10, 0n);
  machine.hart.step(300);
  t.is(machine.hart.x(10), 100n);
});

test('Code that has room is never forgotten', (t) => {
  const machine = new BareHart({ hotAfter: HOT_AFTER });
  for (let i = 0; i < 4 * ROOM; i++) runNewLoop(machine, FIRST_PAGE + i * PAGE, i);
  t.is(counters(machine)('translation-flushes'), 0);
});

test('A page that is written again and again is hardly ever translated, and executed as it is', (t) => {
  const machine = new BareHart({ hotAfter: HOT_AFTER });
  for (let i = 0; i < 500; i++) {
    const before = machine.hart.x(10);
    runNewLoop(machine, FIRST_PAGE, i);
    t.is(machine.hart.x(10) - before, BigInt(67 * (i + 1)));
  }
  const read = counters(machine);
  t.true(read('modules-translated') < 150, `${read('modules-translated')} modules for 500 versions`);
  t.true(read('translations-deferred') > 300);
  // It stands still at last, and is worth translating
  const before = read('modules-translated');
  machine.hart.step(20_000);
  t.is(counters(machine)('modules-translated'), before + 1);
});

test('ChangingPages: short lives in a row hold a page back twice as long each time, a long one makes good', (t) => {
  const pages = new ChangingPages();
  const page = 0x1000;
  let at = 0n;
  let version = 1;
  t.true(pages.mayTranslate(page, version, at));
  /** How often it gets hot before it is translated again, after a change */
  const refusals = (): number => {
    version++;
    for (let count = 0; ; count++) {
      at += 1000n;
      if (pages.mayTranslate(page, version, at)) return count;
    }
  };
  t.deepEqual(Array.from({ length: 9 }, refusals), [1, 3, 7, 15, 31, 63, 63, 63, 63]);
  t.true(pages.mayTranslate(page, version, at), 'another place of the same code');
  at += 1n << 24n;
  t.is(refusals(), 0);
  t.is(refusals(), 1);
  t.true(pages.mayTranslate(0x2000, 9, at), 'another page');
});

test('ChangingPages remembers no more pages than it has room for', (t) => {
  const pages = new ChangingPages();
  for (let page = 0; page < 10_000; page++) t.true(pages.mayTranslate(page * PAGE, 1, 0n));
  t.true(pages.mayTranslate(0, 2, 0n), 'forgotten');
  t.false(pages.mayTranslate(9999 * PAGE, 2, 0n), 'remembered');
});
