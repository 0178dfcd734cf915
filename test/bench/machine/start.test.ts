import { spawn } from 'node:child_process';
import process from 'node:process';
import test from 'ava';
import { treeCpu } from '../../../bench/machine/start.ts';

const onLinux = process.platform === 'linux' ? test : test.skip;

onLinux('treeCpu() counts a process and its children, and no other', async (t) => {
  const busy = 'const until = Date.now() + 100; while (Date.now() < until);';
  const source = `require('node:child_process').spawn(process.execPath, ['-e', ${JSON.stringify(
    `${busy} process.send('done'); setInterval(() => {}, 1000);`,
  )}], { stdio: ['ignore', 'ignore', 'ignore', 'ipc'] }).on('message', () => process.stdout.write('.'));
  process.on('SIGTERM', () => process.exit());`;
  const parent = spawn(process.execPath, ['-e', source], { stdio: ['ignore', 'pipe', 'inherit'] });
  t.teardown(() => parent.kill());
  await new Promise((resolve) => parent.stdout.once('data', resolve));
  const used = treeCpu(parent.pid!);
  t.deepEqual(Object.keys(used).sort(), ['command', 'supervisor']);
  t.true(used.supervisor! > 20, `${used.supervisor} ms`);
});
