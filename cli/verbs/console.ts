import process from 'node:process';
import type { Verb } from '../usage_error.ts';
import { connectVm, expectOperands, splitFlags } from './client.ts';

export const consoleVerb: Verb = {
  name: 'console',
  summary: 'print the address of a machine’s screen',
  help: `caisson console VM
Prints the URL of the page that shows the machine's screen, with the token that lets you in: for your eyes only.
`,
  async run(args) {
    const [name] = expectOperands('console', splitFlags('console', args, {}).operands, ['VM']);
    const { client } = await connectVm(name!);
    try {
      const { url } = await client.execute('__caisson_console');
      process.stdout.write(`${url}\n`);
      return 0;
    } finally {
      await client.close();
    }
  },
};
