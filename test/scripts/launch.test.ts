import { spawnSync } from 'node:child_process';
import { chmodSync, mkdirSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import test from 'ava';
import { codeCache, nodeFlags } from '../../scripts/launch.mjs';

const directory = mkdtempSync(join(tmpdir(), 'caisson-launch-'));
test.after.always(() => rmSync(directory, { recursive: true, force: true }));

test('codeCache() makes a folder of the user alone below the cache folder', (t) => {
  const base = join(directory, 'fresh');
  const folder = join(base, 'caisson', 'code');
  t.deepEqual(codeCache({ XDG_CACHE_HOME: base }), { NODE_COMPILE_CACHE: folder });
  t.is(statSync(folder).mode & 0o777, 0o700);
});

test('codeCache() uses no folder that others can write to: what is in it is run', (t) => {
  const base = join(directory, 'open');
  const folder = join(base, 'caisson', 'code');
  mkdirSync(folder, { recursive: true });
  chmodSync(folder, 0o770);
  t.deepEqual(codeCache({ XDG_CACHE_HOME: base }), {});
  chmodSync(folder, 0o702);
  t.deepEqual(codeCache({ XDG_CACHE_HOME: base }), {});
});

test('codeCache() does without where no folder can be made, and where the user has said which', (t) => {
  const file = join(directory, 'file');
  writeFileSync(file, '');
  t.deepEqual(codeCache({ XDG_CACHE_HOME: file }), {});
  t.deepEqual(codeCache({ XDG_CACHE_HOME: directory, NODE_COMPILE_CACHE: '/elsewhere' }), {});
});

test('a server of disks runs with little room for garbage, and flags that this Node knows', (t) => {
  const flags = nodeFlags('nbd');
  t.true(flags.length > 0);
  t.is(spawnSync(process.execPath, [...flags, '-e', 'process.exit(7)']).status, 7);
  for (const verb of ['run', undefined]) t.deepEqual(nodeFlags(verb), []);
});

test('the command runs in the process that it was started in, unless its verb needs flags of Node', (t) => {
  const command = join(import.meta.dirname, '..', '..', 'bin', 'caisson');
  const run = (...args: string[]) => {
    const { stdout, stderr } = spawnSync(process.execPath, [command, ...args], {
      encoding: 'utf8',
      env: {
        PATH: process.env.PATH,
        HOME: directory,
        NODE_OPTIONS: '--import=data:text/javascript,console.error(process.pid)',
      },
    });
    return { stdout, processes: new Set(stderr.trim().split('\n')).size };
  };
  const version = run('--version');
  t.regex(version.stdout, /^caisson \d/);
  t.is(version.processes, 1);
  const server = run('nbd', '--help');
  t.regex(server.stdout, /caisson nbd/);
  t.is(server.processes, 2);
});
