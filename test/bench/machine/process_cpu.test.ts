import process from 'node:process';
import test from 'ava';
import { cpuBetween, parseSched, parseStat, readProcessCpu } from '../../../bench/machine/process_cpu.ts';

test('parseSched() takes the run time, and nothing where the kernel does not tell', (t) => {
  const text =
    'node (77, #threads: 4)\n-------\nse.exec_start      :        918608.553144\nse.sum_exec_runtime       :   460.370006\n';
  t.is(parseSched(text), 460.370006);
  t.is(parseSched('node (77, #threads: 4)\n'), undefined);
});

test('parseStat() adds user and system time, whatever the thread is called', (t) => {
  const fields = (name: string) => `77 (${name}) R 1 2 3 4 5 6 7 8 9 10 123 45 0 0 20 0 11\n`;
  t.is(parseStat(fields('node')), 1680);
  t.is(parseStat(fields('a) b (c')), 1680);
  t.throws(() => parseStat('77 (node) R 1 2'), { message: /Cannot read stat/ });
});

test('cpuBetween() counts a new thread from 0 and names the busiest', (t) => {
  const before = {
    ms: 30,
    threads: [
      { id: 1, ms: 10 },
      { id: 2, ms: 20 },
    ],
  };
  const after = {
    ms: 100,
    threads: [
      { id: 1, ms: 15 },
      { id: 2, ms: 60 },
      { id: 3, ms: 25 },
    ],
  };
  t.deepEqual(cpuBetween(before, after), { ms: 70, busiestMs: 40 });
  t.deepEqual(cpuBetween(before, before), { ms: 0, busiestMs: 0 });
});

const onLinux = process.platform === 'linux' ? test : test.skip;
onLinux('readProcessCpu() sees a process compute', (t) => {
  const before = readProcessCpu(process.pid);
  const until = performance.now() + 60;
  while (performance.now() < until);
  const { ms, busiestMs } = cpuBetween(before, readProcessCpu(process.pid));
  t.true(busiestMs > 5, `${busiestMs} ms`);
  t.true(ms >= busiestMs);
  t.true(before.threads.some(({ id }) => id === process.pid));
});
