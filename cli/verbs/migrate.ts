import { resolve } from 'node:path';
import process from 'node:process';
import type { QmpArguments } from '../../protocols/qmp/mod.ts';
import { describeProgress, describeResult, followMigration } from '../migration_progress.ts';
import { parseInteger, parseSize } from '../numbers.ts';
import { notice } from '../terminal.ts';
import { UsageError, type Verb } from '../usage_error.ts';
import { connectVm, expectOperands, splitFlags } from './client.ts';

export const migrateVerb: Verb = {
  name: 'migrate',
  summary: 'move a running machine to another process or host',
  help: `caisson migrate VM URI [OPTIONS]
Moves a running machine to one that waits with -incoming URI: tcp:HOST:PORT or unix:PATH. The guest runs on during the
move and stands only for the last round. When it has arrived, the machine here ends.

  --keep                    do not end the machine here; it stays paused
  --max-bandwidth SIZE      bytes a second, 100M, 1G (default: no limit)
  --downtime-limit MS       how long the guest may stand (default 300)
  --allow-plaintext         to another host without encryption: everything the guest knows can be read on the way
`,
  async run(args) {
    const { operands, flags } = splitFlags('migrate', args, {
      '--keep': 'flag',
      '--max-bandwidth': 'value',
      '--downtime-limit': 'value',
      '--allow-plaintext': 'flag',
    });
    const [name, given] = expectOperands('migrate', operands, ['VM', 'URI']);
    const uri = given!.startsWith('unix:') ? `unix:${resolve(given!.slice(5))}` : given!;
    if (!/^(tcp|unix):./.test(given!)) {
      throw new UsageError(`Cannot migrate to ${given}: expected tcp:HOST:PORT or unix:PATH`);
    }
    const { client } = await connectVm(name!);
    // Ctrl-C cancels: the guest runs on here.
    const cancel = () => void client.execute('migrate_cancel').catch(() => {});
    process.on('SIGINT', cancel);
    try {
      const parameters = parametersOf(flags);
      if (Object.keys(parameters).length > 0) await client.execute('migrate-set-parameters', parameters);
      await client.execute('migrate', { uri });
      const isTty = process.stderr.isTTY === true;
      const info = await followMigration(
        () => client.execute('query-migrate'),
        (now) => {
          if (isTty) process.stderr.write(`\r\x1b[K${describeProgress(now)}`);
        },
      );
      if (isTty) process.stderr.write('\r\x1b[K');
      notice(describeResult(info));
      if (info.status !== 'completed') return 1;
      if (!flags.has('--keep')) await client.execute('quit');
      return 0;
    } finally {
      process.off('SIGINT', cancel);
      await client.close();
    }
  },
};

function parametersOf(flags: ReadonlyMap<string, string>): QmpArguments<'migrate-set-parameters'> {
  const bandwidth = flags.get('--max-bandwidth');
  const downtime = flags.get('--downtime-limit');
  return {
    ...(bandwidth === undefined ? {} : { 'max-bandwidth': parseSize('--max-bandwidth', bandwidth, 1) }),
    ...(downtime === undefined ? {} : { 'downtime-limit': parseInteger('--downtime-limit', downtime, 0, 2_000_000) }),
    ...(flags.has('--allow-plaintext') ? { 'allow-plaintext': true } : {}),
  };
}
