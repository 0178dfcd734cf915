import test from 'ava';
import { Convergence, type PassReport } from '../../../services/migration/convergence.ts';
import {
  DEFAULT_PARAMETERS,
  type MigrationParameters,
  mergeParameters,
} from '../../../services/migration/parameters.ts';
import { NO_PROGRESS, toQueryMigrate } from '../../../services/migration/progress.ts';
import { RateLimiter } from '../../../services/migration/rate_limiter.ts';
import { formatMigrationUri, parseMigrationUri } from '../../../services/migration/uri.ts';

const MIB = 1 << 20;

function convergence(parameters: Partial<MigrationParameters> = {}): Convergence {
  return new Convergence({ ...DEFAULT_PARAMETERS, ...parameters });
}

function report(change: Partial<PassReport>): PassReport {
  return {
    pass: 1,
    bytes: 100 * MIB,
    durationMs: 1000,
    remainingPages: 0,
    elapsedMs: 0,
    hopMs: 0,
    stateBytes: 0,
    ...change,
  };
}

test('M11: the forecast is what is left over the slowest of the last passes, and decides the switchover', (t) => {
  const policy = convergence({ 'downtime-limit': 300 });
  // 100 MiB/s; 51.2 MiB are 512 ms, 25.6 MiB are 256 ms
  const first = policy.decide(report({ remainingPages: 13_107 }));
  t.is(first.action, 'pass');
  t.true(Math.abs(first.expectedDowntimeMs - 515) < 2, `${first.expectedDowntimeMs}`);
  t.is(policy.decide(report({ pass: 2, bytes: 50 * MIB, durationMs: 500, remainingPages: 6553 })).action, 'switchover');
});

test('M11: slow answers of the machine are part of the forecast', (t) => {
  const policy = convergence({ 'downtime-limit': 50 });
  t.is(policy.decide(report({ remainingPages: 1024, hopMs: 10 })).action, 'pass');
  t.is(policy.decide(report({ remainingPages: 1024, hopMs: 0.2 })).action, 'switchover');
  // But they cannot keep a guest from moving that has next to nothing left.
  const busy = policy.decide(report({ remainingPages: 10, hopMs: 50 }));
  t.is(busy.action, 'switchover');
  t.true(busy.expectedDowntimeMs > 400);
});

test('a guest of zero pages switches over though no goodput was measured', (t) => {
  t.is(convergence().decide(report({ bytes: 2000, durationMs: 90, remainingPages: 3 })).action, 'switchover');
  t.is(convergence().decide(report({ bytes: 2000, durationMs: 90, remainingPages: 3000 })).action, 'pass');
});

test('M9: two passes without progress throttle the guest, more and more, up to the limit', (t) => {
  const policy = convergence({ 'max-cpu-throttle': 45 });
  const throttles = Array.from(
    { length: 12 },
    (_, index) => policy.decide(report({ pass: index + 1, remainingPages: 20_000 })).throttle,
  );
  t.deepEqual(throttles, [0, 0, 20, 20, 30, 30, 40, 40, 45, 45, 45, 45]);
});

test('without auto-converge the guest is never throttled', (t) => {
  const policy = convergence({ 'auto-converge': false });
  for (let pass = 1; pass < 12; pass++) t.is(policy.decide(report({ pass, remainingPages: 20_000 })).throttle, 0);
});

test('the deadline and max-passes end it as at-deadline says', (t) => {
  const stuck = { remainingPages: 20_000 };
  t.is(convergence({ deadline: 10 }).decide(report({ ...stuck, elapsedMs: 11 })).action, 'give-up');
  t.is(convergence({ deadline: 10 }).decide(report({ ...stuck, elapsedMs: 9 })).action, 'pass');
  t.is(convergence({ 'max-passes': 3 }).decide(report({ ...stuck, pass: 3 })).action, 'give-up');
  const forced = convergence({ 'max-passes': 3, 'at-deadline': 'stop-and-copy' });
  t.is(forced.decide(report({ ...stuck, pass: 3 })).action, 'switchover');
});

test('M2: RateLimiter keeps the mean at its limit, whatever the sizes', (t) => {
  const limiter = new RateLimiter(10 * MIB, 0);
  let nowMs = 0;
  let sent = 0;
  for (let i = 0; i < 500; i++) {
    const bytes = 40 + ((i * 7919) % 262_144);
    sent += bytes;
    nowMs += limiter.take(bytes, nowMs);
  }
  const rate = sent / (nowMs / 1000);
  t.true(Math.abs(rate / (10 * MIB) - 1) < 0.1, `${rate / MIB} MiB/s`);
  t.is(new RateLimiter(0, 0).take(1e12, 0), 0);
});

test('parseMigrationUri() takes QEMU’s forms', (t) => {
  const local = { allowPlaintext: false };
  t.deepEqual(parseMigrationUri('tcp:127.0.0.1:4444', local), { kind: 'tcp', host: '127.0.0.1', port: 4444 });
  t.deepEqual(parseMigrationUri('tcp:[::1]:0', local), { kind: 'tcp', host: '::1', port: 0 });
  t.deepEqual(parseMigrationUri('tcp:localhost:1', local), { kind: 'tcp', host: 'localhost', port: 1 });
  t.deepEqual(parseMigrationUri('unix:/run/m', local), { kind: 'unix', path: '/run/m' });
  t.deepEqual(parseMigrationUri('tcp::5', { allowPlaintext: true }), { kind: 'tcp', host: '', port: 5 });
  for (const uri of ['tcp:127.0.0.1:4444', 'tcp:[::1]:9', 'unix:/run/m']) {
    t.is(formatMigrationUri(parseMigrationUri(uri, local)), uri);
  }
});

for (const uri of [
  'exec:sh -c true',
  'fd:3',
  'file:/etc/passwd',
  'tcp:127.0.0.1',
  'tcp:127.0.0.1:65536',
  'tcp:127.0.0.1:-1',
  'tcp:127.0.0.1:1x',
  'tcp:[fe80::1%eth0]:1',
  'tcp:[127.0.0.1]:1',
  'unix:',
  `unix:/${'a'.repeat(107)}`,
  'unix:/a\0b',
  'constructor:1',
  '',
  7,
  null,
]) {
  test(`parseMigrationUri() refuses ${JSON.stringify(uri).slice(0, 40)}`, (t) => {
    t.throws(() => parseMigrationUri(uri, { allowPlaintext: false }), { code: 'ERR_MIGRATION_URI' });
  });
}

for (const uri of [
  'tcp:192.0.2.1:1',
  'tcp::1',
  'tcp:0.0.0.0:1',
  'tcp:[::]:1',
  'tcp:example.org:1',
  'tcp:127.example.org:1',
]) {
  test(`X1: plaintext off this host is refused: ${uri}`, (t) => {
    t.throws(() => parseMigrationUri(uri, { allowPlaintext: false }), { message: /not encrypted/ });
  });
}

test('mergeParameters() refuses unknown names and wrong values, and changes nothing then', (t) => {
  for (const wrong of [
    { 'max-bandwith': 1 },
    { 'max-bandwidth': -1 },
    { 'max-bandwidth': '1' },
    { 'max-bandwidth': Number.NaN },
    { 'downtime-limit': 1e12 },
    { 'auto-converge': 1 },
    { 'at-deadline': 'explode' },
    { constructor: 1 },
    JSON.parse('{"__proto__": 1}'),
    [],
    'text',
  ]) {
    t.throws(
      () => mergeParameters(DEFAULT_PARAMETERS, wrong),
      { code: 'ERR_MIGRATION_PARAMETER' },
      JSON.stringify(wrong),
    );
  }
  t.deepEqual(mergeParameters(DEFAULT_PARAMETERS, { deadline: 5 }), { ...DEFAULT_PARAMETERS, deadline: 5 });
});

test('toQueryMigrate() is what query-migrate shows', (t) => {
  t.deepEqual(toQueryMigrate(NO_PROGRESS), {});
  const done = toQueryMigrate({ ...NO_PROGRESS, status: 'completed', downtimeMs: 7.4, totalMs: 99.6 });
  t.is(done.status, 'completed');
  t.is(done.downtime, 7);
  t.is(done['total-time'], 100);
  t.false('expected-downtime' in done);
  const failed = toQueryMigrate({ ...NO_PROGRESS, status: 'failed', error: { code: 'E', message: 'Cannot x' } });
  t.is(failed['error-desc'], 'Cannot x');
});
