import test from 'ava';
import { LogSink, type LogTarget, logTarget } from '../../../services/machine/log_sink.ts';

function sink(changes: Partial<LogTarget>) {
  const written: string[] = [];
  const clock = { ms: 0 };
  const target = { ...logTarget(7), ...changes };
  const make = () =>
    new LogSink(
      target,
      () => clock.ms,
      (bytes) => written.push(Buffer.from(bytes).toString('latin1')),
    );
  return { written, clock, make };
}

test('a log ends at its limit, for all threads together', (t) => {
  const { written, make } = sink({ limitBytes: 4096 });
  const [one, two] = [make(), make()];
  one.write('x'.repeat(2048));
  two.write('y'.repeat(2048));
  one.write('z');
  one.write('z');
  t.deepEqual(
    written.map((text) => text.slice(0, 20)),
    ['x'.repeat(20), 'y'.repeat(20), '… the log ends here:'].map((text) =>
      Buffer.from(text).toString('latin1').slice(0, 20),
    ),
  );
  two.write('z');
  t.is(written.length, 4, 'the other thread says it too, once');
  two.write('z');
  t.is(written.length, 4);
});

test('what is too much for a terminal is dropped and counted', (t) => {
  const { written, clock, make } = sink({ bytesPerSecond: 10 });
  const log = make();
  log.write('123456789\n');
  log.write('a\nb\n');
  log.write('c\n');
  t.deepEqual(written, ['123456789\n']);
  clock.ms = 1000;
  log.write('d\n');
  t.is(written.length, 3);
  t.regex(written[1]!, /3 lines were dropped/);
  t.is(written[2], 'd\n');
});

test('a file that cannot be written ends the log, not the guest', (t) => {
  let calls = 0;
  const log = new LogSink(
    logTarget(7),
    () => 0,
    () => {
      calls++;
      throw Object.assign(new Error('no space'), { code: 'ENOSPC' });
    },
  );
  log.write('a');
  log.write('b');
  t.is(calls, 1);
});

test('without a file the log is bounded by what a terminal takes', (t) => {
  t.is(logTarget(undefined).fd, 2);
  t.true(logTarget(undefined).bytesPerSecond! > 0);
  t.is(logTarget(5).bytesPerSecond, undefined);
});
