import test from 'ava';
import { cpuSecondsIn, parseFio } from '../../../bench/nbd/clients.ts';
import { describeGoals, ratioFor, rowsOf, type Sample, verdictOf } from '../../../bench/nbd/figures.ts';
import { type ServerName, WORKLOADS } from '../../../bench/nbd/workloads.ts';

const sample = (rate: number, p50: number, cpu: number): Sample => ({
  rate,
  p50,
  cpu,
  clientPercent: 50,
  peakBytes: 1,
});

test('a ratio above 1 is better for us, for rates and for times', (t) => {
  t.is(ratioFor('rate', 200, 100), 2);
  t.is(ratioFor('p50', 10, 20), 2);
  t.is(ratioFor('CPU', 0.5, 0.25), 0.5);
  t.is(ratioFor('rate', undefined, 100), undefined);
  t.is(ratioFor('rate', 100, 0), undefined);
});

test('a verdict names who was not beaten far enough; wishes and peers that are missing decide nothing', (t) => {
  const goals = [
    { figure: 'rate', against: 'qemu-nbd', must: 2 },
    { figure: 'rate', against: 'nbdkit', must: undefined, aim: 1 },
  ] as const;
  t.is(
    verdictOf(
      goals,
      new Map<ServerName, number>([
        ['qemu-nbd', 2],
        ['nbdkit', 0.5],
      ]),
    ),
    'met',
  );
  t.is(verdictOf(goals, new Map<ServerName, number>([['qemu-nbd', 1.99]])), 'missed: qemu-nbd');
  t.is(verdictOf(goals, new Map()), undefined);
  t.is(describeGoals(goals), '2 qemu-nbd, (1) nbdkit');
});

test('rows hold the median rate and latency, and the least processor time', (t) => {
  const workload = WORKLOADS.find(({ name }) => name === 'read 4K QD1')!;
  const rows = rowsOf(
    workload,
    new Map<ServerName, Sample[]>([
      ['ours', [sample(100, 10, 5), sample(300, 30, 3), sample(200, 20, 4)]],
      ['qemu-nbd', [sample(100, 40, 6)]],
    ]),
  );
  t.deepEqual(
    rows.map(({ unit, ours, '÷ qemu-nbd': ratio, verdict }) => [unit, ours, ratio, verdict]),
    [
      ['IOPS', 200, 2, undefined],
      ['p50 µs', 20, 2, 'met'],
      ['CPU µs/op', 3, 2, undefined],
      ['client %', 50, undefined, undefined],
    ],
  );
});

test('every name is there once, so that --only can mean one row', (t) => {
  t.is(new Set(WORKLOADS.map(({ name }) => name)).size, WORKLOADS.length);
});

test('fio is read behind its warnings; a run that did nothing is refused', (t) => {
  const job = (ios: number) =>
    `note: something\n${JSON.stringify({ jobs: [{ usr_cpu: 30.5, sys_cpu: 60, read: { total_ios: ios, io_bytes: ios * 4096, runtime: 500, clat_ns: { percentile: { '50.000000': 15_500 } } } }] })}`;
  t.deepEqual(parseFio(job(10), 'read'), {
    operations: 10,
    bytes: 40_960,
    seconds: 0.5,
    p50: 15.5,
    clientPercent: 90.5,
  });
  t.throws(() => parseFio(job(0), 'read'), { message: /^Cannot read fio/ });
});

test('what a client has used is in the last line of the shell’s times', (t) => {
  const seconds = cpuSecondsIn('a warning\n0m0.010000s 0m0.020000s\n1m0.260000s 0m0.170000s\n');
  t.true(Math.abs(seconds - 60.43) < 1e-9);
  t.throws(() => cpuSecondsIn('no such line'), { message: /^Cannot read what a client has used/ });
});
