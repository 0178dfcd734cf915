import { parseInteger } from '../numbers.ts';
import { notice } from '../terminal.ts';
import type { Verb } from '../usage_error.ts';
import { connectVm, expectOperands, splitFlags } from './client.ts';

const DEFAULT_WAIT_SECONDS = 60;

export const stopVerb: Verb = {
  name: 'stop',
  summary: 'ask a guest to power off, or end its machine',
  help: `caisson stop VM [--now] [--wait SECONDS]
Asks the guest to power off and waits until it has (default ${DEFAULT_WAIT_SECONDS} s). A guest may ignore that.

  --now            end the machine at once; what the guest has not written to its disks is lost
  --wait SECONDS   how long to wait; then the exit status is 1 and the guest runs on
`,
  async run(args) {
    const { operands, flags } = splitFlags('stop', args, { '--now': 'flag', '--wait': 'value' });
    const [name] = expectOperands('stop', operands, ['VM']);
    const seconds = parseInteger('--wait', flags.get('--wait') ?? String(DEFAULT_WAIT_SECONDS), 0, 86_400);
    const { client } = await connectVm(name!);
    try {
      await client.execute(flags.has('--now') ? 'quit' : 'system_powerdown');
      const { promise: late, resolve } = Promise.withResolvers<false>();
      const timer = setTimeout(() => resolve(false), seconds * 1000);
      const ended = await Promise.race([client.closed.then(() => true), late]);
      clearTimeout(timer);
      if (!ended) notice(`caisson: the guest of ${name} still runs after ${seconds} s; --now ends its machine`);
      return ended ? 0 : 1;
    } finally {
      await client.close();
    }
  },
};
