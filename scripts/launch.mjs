// Runs on any Node from 20: makes sure that the dependencies are there, then hands over to Node 26.
// Everything else in the project may assume Node 26, which the npm registry supplies where the system's is older.
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, statSync } from 'node:fs';
import module from 'node:module';
import { constants, homedir } from 'node:os';
import { dirname, join } from 'node:path';
import process from 'node:process';
import { fileURLToPath, pathToFileURL } from 'node:url';

export const ROOT = dirname(dirname(fileURLToPath(import.meta.url)));
const MIN_NODE = 26;

/** Installs what package-lock.json names, unless it is there already. Quiet when there is nothing to do. */
export function ensureDependencies() {
  const stamp = join(ROOT, 'node_modules', '.package-lock.json');
  const lock = join(ROOT, 'package-lock.json');
  if (!existsSync(lock)) return; // a published package: npm has installed it
  if (existsSync(stamp) && statSync(stamp).mtimeMs >= statSync(lock).mtimeMs) return;
  process.stderr.write('caisson: first run: installing the npm packages that package-lock.json names …\n');
  const npm = process.platform === 'win32' ? 'npm.cmd' : 'npm';
  const result = spawnSync(npm, ['install', '--no-save', '--no-audit', '--no-fund', '--loglevel=error'], {
    cwd: ROOT,
    stdio: ['ignore', 'ignore', 'inherit'],
  });
  if (result.status !== 0) {
    process.stderr.write('caisson: cannot install the npm packages; is the npm registry reachable? Try: npm install\n');
    process.exit(1);
  }
}

function isNewEnough() {
  return Number.parseInt(process.versions.node, 10) >= MIN_NODE;
}

/** The path of a Node that is new enough. */
export function findNode() {
  if (isNewEnough()) return process.execPath;
  const target = `${process.platform}-${process.arch}`;
  for (const name of [`node-${target}`, `node-bin-${target}`]) {
    const supplied = join(ROOT, 'node_modules', name, 'bin', 'node');
    if (existsSync(supplied)) return supplied;
  }
  process.stderr.write(
    `caisson: needs Node ${MIN_NODE} or newer; this is ${process.version}, and npm has no Node ${MIN_NODE} for ${target}\n`,
  );
  process.exit(1);
}

/**
 * The environment that lets Node keep the code that it compiled, in the user's cache folder: starting takes a third of
 * the time. Not in the temporary folder, where Node would put it, and only in a folder that nobody else can write to:
 * what is in there is run. NODE_DISABLE_COMPILE_CACHE=1 turns it off.
 */
export function codeCache(environment = process.env) {
  if (environment.NODE_COMPILE_CACHE !== undefined) return {};
  const base = environment.XDG_CACHE_HOME;
  const folder = join(base?.startsWith('/') ? base : join(homedir(), '.cache'), 'caisson', 'code');
  try {
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    const { uid, mode } = statSync(folder);
    return uid === process.getuid?.() && (mode & 0o022) === 0 ? { NODE_COMPILE_CACHE: folder } : {};
  } catch {
    return {}; // read-only, or no such home: it only takes longer
  }
}

/**
 * Flags of Node that a verb runs with. A server of disks makes a little garbage with each request, none of which lives:
 * 4 MiB for it instead of 16 cost no processor time, and its memory stays small.
 */
export function nodeFlags(verb) {
  return verb === 'nbd' ? ['--max-semi-space-size=4'] : [];
}

/** What a program of ours finds in its environment beside the user's. */
const ownEnvironment = () => ({ PATH: `${join(ROOT, 'node_modules', '.bin')}:${process.env.PATH ?? ''}` });

/**
 * Runs the command line with `words`: here, where this Node is new enough and the verb needs no flags of Node, since
 * another process would cost as much as the half of what it does; else under Node 26.
 */
export async function runCommand(words) {
  const main = join(ROOT, 'cli', 'main.ts');
  const flags = nodeFlags(words[0]);
  if (!isNewEnough() || flags.length > 0) return handOver([main, ...words], codeCache(), flags);
  const cache = codeCache();
  Object.assign(process.env, ownEnvironment(), cache);
  if (cache.NODE_COMPILE_CACHE !== undefined) module.enableCompileCache(cache.NODE_COMPILE_CACHE);
  const { resolveRelativeImports } = await import('../services/shared/relative_imports.mjs');
  resolveRelativeImports();
  process.argv.splice(1, process.argv.length, main, ...words);
  await import(pathToFileURL(main).href);
}

/** Runs `args` under Node 26 in place of this process: same terminal, same signals, same exit status. */
export function handOver(args, env = {}, flags = []) {
  // What systemd has opened for us goes on: its descriptors begin at 3.
  const sockets = Math.min(Number(process.env.LISTEN_FDS ?? 0) || 0, 64);
  const child = spawn(findNode(), [...flags, ...args], {
    stdio: ['inherit', 'inherit', 'inherit', ...Array.from({ length: sockets }, (_, index) => 3 + index)],
    env: {
      ...process.env,
      ...ownEnvironment(),
      ...env,
    },
  });
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => child.kill(signal));
  child.on('exit', (code, signal) => process.exit(signal === null ? (code ?? 1) : 128 + constants.signals[signal]));
  child.on('error', (error) => {
    process.stderr.write(`caisson: cannot start ${args[0]}: ${error.message}\n`);
    process.exit(1);
  });
}
