import test from 'ava';
import { HART_COUNTERS, RETIRED } from '../../../emulator/hart/counters.ts';
import { validateCommand } from '../../../protocols/qmp/mod.ts';
import { describeStats, describeStatsSchemas } from '../../../services/monitor/stats.ts';

const ANSWER = [0, 1].map((hart) => ({
  'cpu-index': hart,
  stats: [
    { name: 'instructions', value: 1000 + hart },
    { name: 'exceptions', value: 7 },
    { name: 'page-walks', value: 9 },
  ],
}));

function ask(filter: object, answer: unknown = ANSWER): unknown {
  const call = validateCommand('query-stats', filter as never);
  if (call.name !== 'query-stats') throw new Error('another command');
  return describeStats(call.arguments, answer);
}

test('query-stats gives each hart by its path, with the counters that were asked for', (t) => {
  t.deepEqual(ask({ target: 'vcpu', providers: [{ provider: 'caisson', names: ['page-walks', 'instructions'] }] }), [
    {
      provider: 'caisson',
      'qom-path': '/machine/soc0/harts[0]',
      stats: [
        { name: 'instructions', value: 1000 },
        { name: 'page-walks', value: 9 },
      ],
    },
    {
      provider: 'caisson',
      'qom-path': '/machine/soc0/harts[1]',
      stats: [
        { name: 'instructions', value: 1001 },
        { name: 'page-walks', value: 9 },
      ],
    },
  ]);
  const all = ask({ target: 'vcpu', vcpus: ['/machine/soc0/harts[1]'] }) as { stats: unknown[] }[];
  t.is(all.length, 1);
  t.is(all[0]!.stats.length, 3);
  t.deepEqual(ask({ target: 'vm' }), []);
});

test('query-stats lets nothing else of a machine that was taken over through', (t) => {
  const hostile = [
    { stats: [{ name: '<script>', value: 1 }, { name: 'exceptions', value: -1 }, null, { name: 'waits', value: 'x' }] },
  ];
  t.deepEqual(ask({ target: 'vcpu' }, hostile), [
    { provider: 'caisson', 'qom-path': '/machine/soc0/harts[0]', stats: [] },
  ]);
  for (const answer of [undefined, null, 5, 'x', [null], [{ stats: 5 }]])
    t.notThrows(() => ask({ target: 'vcpu' }, answer));
});

test('query-stats refuses a provider that is not ours', (t) => {
  t.throws(() => ask({ target: 'vcpu', providers: [{ provider: 'kvm' }] }), { message: /does not accept value 'kvm'/ });
  t.throws(() => ask({}), { message: /'target' is missing/ });
});

test('query-stats-schemas names every counter once', (t) => {
  const names = describeStatsSchemas().flatMap(({ stats }) => stats.map(({ name }) => name));
  t.deepEqual(
    names,
    [RETIRED, ...HART_COUNTERS].map(({ name }) => name),
  );
  t.is(new Set(names).size, names.length);
});
