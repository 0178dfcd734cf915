import test, { type ExecutionContext } from 'ava';
import { Hart, type HartHost } from '../../../emulator/hart/hart.ts';
import { encode } from '../../../emulator/isa/mod.ts';
import * as H from '../../../emulator/kernel/assembly/hart_layout.ts';
import { HartLog } from '../../../emulator/trace/hart_log.ts';
import { isLogItem, LOG_ITEMS, type LogItem } from '../../../emulator/trace/log_items.ts';
import { codeLine, trapLine } from '../../../emulator/trace/log_text.ts';
import { sortSymbols } from '../../../emulator/trace/symbols.ts';
import { BareHart, CODE, M_HANDLER } from '../../fixtures/bare_hart.ts';

const A0 = 10;

/** A second hart object over the same memory whose host passes the kernel's events on */
function logged(items: readonly LogItem[], words: readonly number[], steps = words.length): string {
  const machine = new BareHart();
  let log: HartLog | undefined;
  const host: HartHost = {
    now: () => 0,
    poll: () => 0,
    mmioRead: () => -1,
    mmioWrite: () => false,
    log: (kind, first, second, third) => log?.event(kind, first, second, third),
  };
  const hart = new Hart(machine.memory, machine.layout, 0, host);
  const symbols = sortSymbols([
    { name: 'start', address: BigInt(CODE), sizeBytes: 0 },
    { name: 'handler', address: BigInt(M_HANDLER), sizeBytes: 0 },
  ]);
  let text = '';
  log = new HartLog(hart, { items, symbols }, (piece) => {
    text += piece;
  });
  machine.code(CODE, words);
  hart.pc = BigInt(CODE);
  for (let step = 0; step < steps; step++) log.run(1);
  log.flush();
  return text;
}

test('int tells each trap with cause, epc and tval, in the shape of QEMU', (t) => {
  t.is(
    logged(['int'], [encode('addi', { rd: A0, imm: 1 }), encode('ecall', {})]),
    'riscv_cpu_do_interrupt: hart:0, async:0, cause:000000000000000b, epc:0x0000000080001004, ' +
      'tval:0x0000000000000000, desc=machine_ecall\n',
  );
  t.regex(trapLine(1, (1n << 63n) | 5n, 4n, 0n), /hart:1, async:1, cause:0{15}5, .*desc=s_timer\n$/);
});

test('in_asm shows each instruction once, when it is first executed', (t) => {
  const words = [encode('addi', { rd: A0, imm: 1 }), encode('jal', { rd: 0, imm: -4 })];
  t.is(
    logged(['in_asm'], words, 9),
    `
----------------
IN: start
Priv: 3; Virt: 0
0x0000000080001000:  00100513          addi                    a0,zero,1
0x0000000080001004:  ffdff06f          jal                     zero,0x80001000
`,
  );
  t.is(codeLine(0x80000014n, 0x4305), '0x0000000080000014:  4305              addi                    t1,zero,1\n');
});

test('exec shows every instruction before it is executed, cpu the registers then', (t) => {
  const words = [encode('addi', { rd: A0, imm: 7 }), encode('ecall', {})];
  const lines = logged(['exec', 'cpu'], words, 3).split('\n');
  const traces = lines.filter((line) => line.startsWith('Trace'));
  t.deepEqual(traces, [
    'Trace 0: 0x0 [00000000/0000000080001000/00000003/00000001] start',
    'Trace 0: 0x0 [00000000/0000000080001004/00000003/00000001] start',
    'Trace 0: 0x0 [00000000/0000000080002000/00000003/00000001] handler',
  ]);
  const a0 = lines.filter((line) => line.includes('x10/a0')).map((line) => /x10\/a0 +(\S+)/.exec(line)![1]);
  t.deepEqual(a0, ['0000000000000000', '0000000000000007', '0000000000000007']);
  t.false(lines.some((line) => line.includes('ft0')));
});

test('mmu tells translations and faults', (t) => {
  const text = logged(['mmu'], [encode('lb', { rd: A0, rs1: 0, imm: 0 })]);
  t.regex(
    text,
    /^riscv_cpu_tlb_fill ad 80001000 rw 2 mmu_idx 3\n.* address=80001000 ret 0 physical 0000000080001000 prot 4\n/,
  );
  t.regex(text, /ad 0 rw 0 mmu_idx 3\n/);
});

test('guest_errors names accesses that nothing answers, and nothing is written where it is off', (t: ExecutionContext) => {
  const machine = new BareHart();
  const texts: string[] = [];
  const on = new HartLog(machine.hart, { items: ['guest_errors'] }, (text) => texts.push(text));
  on.invalidAccess('write', 0x1234_5678, 4);
  on.flush();
  t.deepEqual(texts, ["Invalid write at addr 0x12345678, size 4, region '(null)', reason: rejected\n"]);
  const off = new HartLog(machine.hart, { items: ['int'] }, (text) => texts.push(text));
  off.invalidAccess('read', 0, 1);
  off.flush();
  t.is(texts.length, 1);
  t.is(machine.hart.get32(H.HART_LOG), H.LOG_INT);
});

test('isLogItem() knows each item of the help and no other', (t) => {
  for (const { name } of LOG_ITEMS) t.true(isLogItem(name));
  for (const word of ['', 'INT', 'op', 'constructor']) t.false(isLogItem(word));
});
