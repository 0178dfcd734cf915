import test from 'ava';
import { readRunOutput } from '../../../cli/debian/smoke.ts';

const OUTPUT = [
  '[    0.000000] Kernel command line: console=ttyS0 caisson.run="uname -a"',
  'caisson: guest is ready',
  '[    4.100000] random: crng init done',
  'Linux caisson 7.2 riscv64 GNU/Linux',
  'caisson: exit status 0',
  '[    4.900000] reboot: Power down',
  '',
].join('\r\n');

test('readRunOutput() gives what the command printed, without the kernel in between', (t) => {
  t.deepEqual(readRunOutput(OUTPUT), { text: 'Linux caisson 7.2 riscv64 GNU/Linux', status: 0 });
});

test('readRunOutput() gives the status of a command that failed', (t) => {
  t.is(readRunOutput(OUTPUT.replace('status 0', 'status 127'))?.status, 127);
});

test('readRunOutput() does not take a guest that died for one that ended', (t) => {
  t.is(readRunOutput(OUTPUT.slice(0, OUTPUT.indexOf('caisson: exit'))), undefined);
  t.is(readRunOutput('Kernel panic'), undefined);
  t.is(readRunOutput('caisson: exit status 0\n'), undefined, 'not without a boot');
});
