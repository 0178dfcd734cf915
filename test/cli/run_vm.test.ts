import test from 'ava';
import { describeReport } from '../../cli/run_vm.ts';

const line = { kind: 'text', role: 'machine', text: 'riscv_cpu_do_interrupt: hart:0' } as const;

test('a log without -D has no words in front: what reads QEMU’s reads it', (t) => {
  t.is(describeReport(line, { log: { items: ['int'] } }), line.text);
});

test('a line of a role says whose it is, the supervisor’s does not', (t) => {
  t.is(describeReport(line, {}), `[machine] ${line.text}`);
  t.is(describeReport(line, { log: { items: ['int'], file: '/tmp/log' } }), `[machine] ${line.text}`);
  t.is(describeReport({ ...line, role: 'disk' }, { log: { items: ['int'] } }), `[disk] ${line.text}`);
  t.is(describeReport({ ...line, role: 'supervisor' }, {}), line.text);
});
