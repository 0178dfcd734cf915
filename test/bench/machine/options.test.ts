import test from 'ava';
import { BenchUsageError, COMPUTE, LATENCY, parseMachineOptions } from '../../../bench/machine/options.ts';

test('parseMachineOptions() measures everything where nothing is named', (t) => {
  const options = parseMachineOptions([]);
  for (const name of [...COMPUTE, 'boot', 'commands', 'parallel', ...LATENCY, 'resident', 'hostile']) {
    t.true(options.names.has(name), name);
  }
  t.is(options.rounds, 5);
  t.is(options.percent, 100);
  t.is(options.json, undefined);
  t.false(options.alone);
});

test('parseMachineOptions() takes single names and groups', (t) => {
  const { names } = parseMachineOptions(['hash', 'latency']);
  t.deepEqual([...names].sort(), ['hash', ...LATENCY].sort());
  t.deepEqual([...parseMachineOptions(['memory']).names], ['resident', 'hostile']);
});

test('parseMachineOptions() takes each option in both forms', (t) => {
  const options = parseMachineOptions(['--rounds', '7', '--percent=20', 'mix', '--json=out.json', '--alone']);
  t.is(options.rounds, 7);
  t.is(options.percent, 20);
  t.is(options.json, 'out.json');
  t.true(options.alone);
  t.deepEqual([...options.names], ['mix']);
});

for (const wrong of [
  ['bubblesort'],
  ['--rounds', '0'],
  ['--rounds', '1.5'],
  ['--rounds=-1'],
  ['--rounds', 'many'],
  ['--percent', '1001'],
  ['--seconds', ''],
  ['--engine', 'jit'],
  ['--unknown'],
  ['--alone=yes'],
]) {
  test(`parseMachineOptions() refuses ${JSON.stringify(wrong)}`, (t) => {
    const error = t.throws(() => parseMachineOptions(wrong), { instanceOf: BenchUsageError });
    t.is(error?.code, 'ERR_BENCH_USAGE');
    t.regex(error!.message, /^Cannot /);
  });
}

test('parseMachineOptions() leaves the engine to the machine, or takes the one that is named', (t) => {
  t.is(parseMachineOptions([]).engine, undefined);
  t.is(parseMachineOptions(['--engine', 'interpreter']).engine, 'interpreter');
  t.is(parseMachineOptions(['--engine', 'translator']).engine, 'translator');
  t.throws(() => parseMachineOptions(['--engine', 'magic']), { message: /interpreter or translator/ });
});
