import test, { type ExecutionContext } from 'ava';
import type { FakeMachineOptions } from '../../fixtures/fake_machine.ts';
import { exited, ProcessSide } from '../../fixtures/migration_processes.ts';

async function startSide(t: ExecutionContext, options: FakeMachineOptions & { randomPages?: number }) {
  const side = await ProcessSide.start(options);
  t.teardown(() => side.close());
  return side;
}

const SOURCE = { ramBytes: 64 << 20, storesMiBPerSecond: 200, workingSetPages: 2048, randomPages: 8192 };

test.serial('M1: four processes: a guest that dirties 200 MiB a second moves, no store is lost', async (t) => {
  t.timeout(60_000);
  const [source, destination] = await Promise.all([
    startSide(t, SOURCE),
    startSide(t, { ...SOURCE, randomPages: 0, status: 'inmigrate' }),
  ]);
  const { uri } = (await destination.rpc.call('migrate-incoming', { uri: 'tcp:127.0.0.1:0' })) as { uri: string };
  await source.rpc.call('migrate', { uri, parameters: { 'downtime-limit': 100, 'verify-ram': true } });
  const status = await source.ended();
  const query = await source.query();
  t.is(status, 'completed', JSON.stringify(query));
  t.is(await destination.ended(), 'completed');
  const from = await source.report();
  const to = await destination.report();
  t.is(from.status, 'paused');
  t.is(to.status, 'running');
  t.is(from.problem, undefined);
  t.is(to.problem, undefined);
  t.true(BigInt(from.stores) > 500n);
  t.true(BigInt(to.stores) >= BigInt(from.stores));
  await new Promise((resolve) => setTimeout(resolve, 50));
  const later = await destination.report();
  t.true(BigInt(later.stores) > BigInt(from.stores), 'it runs on');
  t.is((await source.report()).stores, from.stores, 'and only there');
  t.log(
    `downtime ${String(query.downtime)} ms, total ${String(query['total-time'])} ms, passes ${String((query.ram as Record<string, unknown>)['dirty-sync-count'])}`,
  );
});

for (const victim of ['source', 'destination'] as const) {
  test.serial(
    `the migration process of the ${victim} is killed in a pass: the guest runs on at the source`,
    async (t) => {
      t.timeout(60_000);
      const [source, destination] = await Promise.all([
        startSide(t, SOURCE),
        startSide(t, { ...SOURCE, randomPages: 0, status: 'inmigrate' }),
      ]);
      const before = (await destination.report()).digest;
      const { uri } = (await destination.rpc.call('migrate-incoming', { uri: 'tcp:127.0.0.1:0' })) as { uri: string };
      await source.rpc.call('migrate', { uri, parameters: { 'max-bandwidth': 8 << 20 } });
      await new Promise((resolve) => setTimeout(resolve, 300));
      const role = victim === 'source' ? source.role : destination.role;
      role.kill('SIGKILL');
      await exited(role);
      if (victim === 'destination') t.is(await source.ended(), 'failed');
      await new Promise((resolve) => setTimeout(resolve, 200));
      const from = await source.report();
      t.is(from.status, 'running');
      t.is(from.problem, undefined);
      const to = await destination.report();
      t.is(to.status, 'inmigrate');
      t.is(to.digest, before, 'nothing of the guest stays');
    },
  );
}
