// `npm run conformance [-- AVA ARGUMENTS]`: installs the peers that conformance/peers.json names, as far as this system
// lets us, then runs the black-box tests. What is missing is skipped there, loudly, never here in silence.
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import process from 'node:process';
import { didYouMean } from '../cli/suggest.ts';
import { asksForHelp, failUsage, ScriptUsageError } from './script_arguments.ts';

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

const HELP = `npm run conformance -- [FILE…] [OPTIONS]

Runs the tests that other people's programs judge: QEMU, libnbd, nbdkit, viewers, a browser. What conformance/peers.json names
is installed first by apt, where that is allowed; what is missing is skipped, and the test says so.

  FILE                test files (default: all below conformance/, which takes long)
  -m, --match TEXT    only tests whose name is so; * stands for anything
  -s, --serial        one test after the other
  -c, --concurrency N so many files at once
  -T, --timeout TIME  60s, 10m: how long nothing may happen
  -v, --verbose, -t, --tap, --fail-fast, -u, --update-snapshots   as AVA has them
  --no-install        nothing is installed

  npm run conformance -- conformance/nbd/server.test.ts
  npm run conformance -- conformance/nbd/tls.test.ts -m '*nbdcopy*'
`;

/** Words of AVA that make sense here, and whether a value follows */
const AVA_OPTIONS: Readonly<Record<string, boolean>> = {
  ...{ '-m': true, '--match': true, '-c': true, '--concurrency': true, '-T': true, '--timeout': true },
  ...{ '-s': false, '--serial': false, '-v': false, '--verbose': false, '-t': false, '--tap': false },
  ...{ '--fail-fast': false, '-u': false, '--update-snapshots': false },
};

/** @throws ScriptUsageError */
function checkWords(words: readonly string[]): void {
  for (let at = 0; at < words.length; at++) {
    const word = words[at]!;
    if (!word.startsWith('-')) {
      if (!existsSync(join(ROOT, word.replace(/:[\d,-]+$/, ''))) && !/[*?{]/.test(word)) {
        throw new ScriptUsageError(`Cannot run ${word}: there is no such file`);
      }
      continue;
    }
    const name = word.split('=', 1)[0]!;
    const takesValue = Object.hasOwn(AVA_OPTIONS, name) ? AVA_OPTIONS[name] : undefined;
    if (takesValue === undefined) {
      const near = didYouMean(name, [...Object.keys(AVA_OPTIONS), '--no-install', '--help']);
      throw new ScriptUsageError(`Cannot use ${name}: unknown${near}`);
    }
    if (takesValue && !word.includes('=') && words[++at] === undefined) {
      throw new ScriptUsageError(`Cannot use ${name}: its value is missing`);
    }
  }
}

const given = process.argv.slice(2);
if (asksForHelp(given)) {
  process.stdout.write(HELP);
  process.exit(0);
}
const words = given.filter((word) => word !== '--no-install');
try {
  checkWords(words);
} catch (error) {
  failUsage(error as Error);
}
if (words.length === given.length) installPeers();
const ava = join(ROOT, 'node_modules', 'ava', 'entrypoints', 'cli.js');
const args = [ava, '--config', 'conformance.config.js', ...words];
const run = spawnSync(process.execPath, args, { cwd: ROOT, stdio: 'inherit' });
process.exitCode = run.status ?? 1;
