import test, { type ExecutionContext } from 'ava';
import { Machine } from '../../../emulator/machine/machine.ts';
import { firmwareElf } from '../../../guests/firmware/mod.ts';
import { nodePlatform } from '../../../services/machine/node_platform.ts';
import { EmbeddedSide, FakeDisks } from '../../fixtures/migration_pair.ts';

/** The real machine with our firmware, and what it has printed */
function makeMachine(t: ExecutionContext) {
  const machine = Machine.create(
    { ramBytes: 32 << 20, harts: 1, bios: 'none', kernel: firmwareElf(), disks: [], display: false, network: false },
    nodePlatform({ onProblem: (text) => t.log(text) }),
  );
  let printed = '';
  let wake: (() => void) | undefined;
  machine.serial.output.subscribe((bytes) => {
    printed += Buffer.from(bytes).toString('latin1');
    wake?.();
  });
  return {
    machine,
    say: (line: string) => machine.serial.write(Buffer.from(`${line}\r`)),
    async prints(text: RegExp): Promise<string> {
      for (;;) {
        const found = text.exec(printed);
        if (found !== null) return found[0];
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
      }
    },
  };
}

test('M1: the firmware moves while it dirties 200 MiB a second, and its checksum proves that no store was lost', async (t) => {
  t.timeout(120_000);
  const from = makeMachine(t);
  const to = makeMachine(t);
  const source = new EmbeddedSide(from.machine, new FakeDisks(true));
  const destination = new EmbeddedSide(to.machine, new FakeDisks(false));
  t.teardown(async () => {
    await Promise.all([source.close(), destination.close()]);
    await Promise.all([from.machine.close(), to.machine.close()]);
  });
  to.machine.awaitMigration();
  from.machine.start();
  await from.prints(/ready\r\n> /);
  from.say('dirty 200');
  await new Promise((resolve) => setTimeout(resolve, 200));
  const { uri } = (await destination.rpc.call('migrate-incoming', { uri: 'tcp:127.0.0.1:0' })) as { uri: string };
  await source.rpc.call('migrate', { uri, parameters: { 'verify-ram': true } });
  const status = await source.ended();
  const query = await source.query();
  t.is(status, 'completed', JSON.stringify(query));
  t.is(await destination.ended(), 'completed');
  t.is(from.machine.status, 'paused');
  await new Promise((resolve) => setTimeout(resolve, 200));
  to.say('stop');
  await to.prints(/stop: done/);
  to.say('checksum');
  const checksum = await to.prints(/checksum: .*\r\n/);
  t.regex(checksum, /^checksum: OK generation=[1-9]\d+ .*bad-pages=0 bad-words=0 online-bad=0/);
  t.log(`${checksum.trim()}; downtime ${String(query.downtime)} ms, passes ${source.passes.length}`);
});
