// `npm run conformance [-- AVA ARGUMENTS]`: installs the peers that conformance/peers.json names, as far as this system
// lets us, then runs the black-box tests. What is missing is skipped there, loudly, never here in silence.
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import process from 'node:process';

const ROOT = join(import.meta.dirname, '..');
const say = (text: string) => process.stderr.write(`conformance: ${text}\n`);

function isInstalled(name: string): boolean {
  // biome-ignore lint/suspicious/noTemplateCurlyInString: dpkg-query fills it in
  const run = spawnSync('dpkg-query', ['-W', '-f', '${db:Status-Status}', name], { encoding: 'utf8' });
  return run.status === 0 && run.stdout === 'installed';
}

/** What to put before `apt-get` to be allowed to install; undefined where we are not. */
function privilege(): readonly string[] | undefined {
  if (process.getuid?.() === 0) return [];
  return spawnSync('sudo', ['-n', 'true']).status === 0 ? ['sudo', '-n'] : undefined;
}

function aptGet(prefix: readonly string[], args: readonly string[]): boolean {
  const [command, ...rest] = [...prefix, 'env', 'DEBIAN_FRONTEND=noninteractive', 'apt-get', '-q', '-y', ...args];
  const run = spawnSync(command!, rest, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'], maxBuffer: 64 << 20 });
  if (run.status !== 0)
    say(`apt-get ${args[0]} failed: ${(run.stderr ?? String(run.error)).trim().split('\n').at(-1)}`);
  return run.status === 0;
}

function installPeers(): void {
  const peers = JSON.parse(readFileSync(join(ROOT, 'conformance', 'peers.json'), 'utf8')) as Record<string, string>;
  if (spawnSync('apt-get', ['--version']).status !== 0) {
    say('no apt-get here: tests whose peer is missing are skipped');
    return;
  }
  const missing = Object.keys(peers).filter((name) => !isInstalled(name));
  if (missing.length === 0) return;
  const prefix = privilege();
  if (prefix === undefined) {
    say(
      `not root, and sudo asks for a password: these stay missing, and their tests are skipped: ${missing.join(' ')}`,
    );
    return;
  }
  for (const name of missing) say(`installs ${name}: ${peers[name]}`);
  aptGet(prefix, ['update']);
  const install = ['install', '--no-install-recommends', '-o', 'DPkg::Lock::Timeout=300'];
  // All at once is quicker; one by one, a package that this release lacks does not keep the others away.
  if (!aptGet(prefix, [...install, ...missing])) for (const name of missing) aptGet(prefix, [...install, name]);
  const still = missing.filter((name) => !isInstalled(name));
  if (still.length > 0) say(`still missing, their tests are skipped: ${still.join(' ')}`);
}

installPeers();
const ava = join(ROOT, 'node_modules', 'ava', 'entrypoints', 'cli.js');
const args = [ava, '--config', 'conformance.config.js', ...process.argv.slice(2)];
const run = spawnSync(process.execPath, args, { cwd: ROOT, stdio: 'inherit' });
process.exitCode = run.status ?? 1;
