import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { DebianError, prepareDebian } from '../../guests/debian/mod.ts';

// The command of the README, as a user types it.

const COMMAND = join(import.meta.dirname, '..', '..', 'bin', 'caisson');

interface Run {
  readonly status: number | null;
  readonly output: string;
  readonly messages: string;
}

async function caisson(
  t: ExecutionContext,
  args: readonly string[],
  environment: NodeJS.ProcessEnv = {},
): Promise<Run> {
  const child = spawn(process.execPath, [COMMAND, ...args], {
    env: { ...process.env, ...environment },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  t.teardown(() => child.kill());
  let output = '';
  let messages = '';
  child.stdout.on('data', (chunk: Buffer) => (output += chunk.toString('latin1')));
  child.stderr.on('data', (chunk: Buffer) => (messages += chunk.toString('latin1')));
  const status = await new Promise<number | null>((resolve, reject) => {
    child.once('error', reject);
    child.once('close', resolve);
  });
  return { status, output, messages };
}

test.serial("caisson debian --smoke ends with the guest's own uname line and exit status 0", async (t) => {
  t.timeout(15 * 60_000);
  const guest = await prepareDebian().catch((error: unknown) => error as Error);
  if (guest instanceof DebianError) {
    t.log(`SKIPPED: ${guest.message}`);
    t.pass();
    return;
  }
  if (guest instanceof Error) throw guest;
  for (const harts of ['1', '2']) {
    const { status, output, messages } = await caisson(t, ['debian', '--smoke', '-smp', harts]);
    t.is(status, 0, messages.slice(-2000));
    t.is(output.trim().split('\n').length, 1);
    t.regex(output, /^Linux caisson \S+ #1 SMP .* riscv64 GNU\/Linux\n$/);
    t.true(output.includes(guest.version));
    t.regex(
      messages,
      new RegExp(`Linux version ${guest.version.replaceAll(/[.+]/g, '\\$&')}`),
      'the kernel is Debian’s',
    );
    t.regex(messages, /\/dev\/vda is mounted on \/mnt/);
  }
});

test.serial('caisson debian --smoke without a network says why and boots the embedded firmware', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'caisson-offline-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  const configuration = join(folder, 'apt.conf');
  // Port 9 of this machine answers nobody: as far as apt can see, there is no network.
  writeFileSync(
    configuration,
    'Acquire::http::Proxy "http://127.0.0.1:9";\nAcquire::https::Proxy "http://127.0.0.1:9";\n',
  );
  const { status, output, messages } = await caisson(t, ['debian', '--smoke'], {
    APT_CONFIG: configuration,
    XDG_CACHE_HOME: folder,
  });
  t.is(status, 0, messages.slice(-2000));
  t.regex(messages, /^caisson: Cannot .*\. The embedded firmware starts instead/m);
  t.regex(output, /^checksum: OK generation=\d+ .* bad-words=0 /);
});

test.serial('caisson debian refuses an option that it does not know, and names the nearest', async (t) => {
  const { status, messages } = await caisson(t, ['debian', '--smok']);
  t.is(status, 2);
  t.regex(messages, /Cannot use --smok with debian: unknown; did you mean --smoke/);
});
