import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmod, mkdir, mkdtemp, readdir, rm, stat, symlink, utimes, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import test, { type ExecutionContext } from 'ava';
import { findVm, listVms, registerVm } from '../../../services/supervisor/mod.ts';
import { registryFolder } from '../../../services/supervisor/registry.ts';

async function environment(t: ExecutionContext): Promise<{ XDG_RUNTIME_DIR: string }> {
  const folder = await mkdtemp(join(tmpdir(), 'caisson-registry-'));
  t.teardown(() => rm(folder, { recursive: true, force: true }));
  return { XDG_RUNTIME_DIR: folder };
}
const facts = { uuid: 'u', ramBytes: 1, harts: 1 };

test('registerVm() refuses names that lead out of the registry, and touches nothing', async (t) => {
  for (const name of ['../x', 'a/b', '', '..']) {
    await t.throwsAsync(registerVm(name), { code: 'ERR_REGISTRY', message: /expected 1\.\.64 letters/ }, name);
  }
});

test('registerVm() makes a folder for its owner only, and listVms() shows it until it is removed', async (t) => {
  const env = await environment(t);
  const mine = await registerVm('one', { environment: env });
  t.is((await stat(mine.directory)).mode & 0o777, 0o700);
  t.deepEqual(await listVms(env), []);
  await mine.describe(facts);
  const [found] = await listVms(env);
  t.is(found?.name, 'one');
  t.is(found?.pid, process.pid);
  t.is((await findVm('one', env)).qmpPath, join(mine.directory, 'qmp.sock'));
  await mine.remove();
  t.deepEqual(await listVms(env), []);
});

test('registerVm() refuses a name that runs, or takes the next one', async (t) => {
  const env = await environment(t);
  await registerVm('one', { environment: env });
  await t.throwsAsync(registerVm('one', { environment: env }), { code: 'ERR_VM_EXISTS' });
  t.is((await registerVm('one', { environment: env, renameIfTaken: true })).name, 'one-2');
});

test('two that register one name at once: one gets it', async (t) => {
  const env = await environment(t);
  const results = await Promise.allSettled(Array.from({ length: 8 }, () => registerVm('one', { environment: env })));
  t.is(results.filter(({ status }) => status === 'fulfilled').length, 1);
});

test('findVm() names what runs', async (t) => {
  const env = await environment(t);
  await (await registerVm('one', { environment: env })).describe(facts);
  await t.throwsAsync(findVm('two', env), { message: 'Cannot find a machine named two: running are one' });
});

test('listVms() removes what a dead process left, also when its number is used again', async (t) => {
  const env = await environment(t);
  const child = spawn(process.execPath, ['-e', ''], { stdio: 'ignore' });
  const pid = child.pid!;
  await once(child, 'exit');
  const base = await registryFolder(env);
  for (const [name, owner] of [
    ['dead', { pid, start: '1' }],
    ['reused', { pid: process.pid, start: '1' }],
    ['nonsense', { pid: 'x' }],
  ] as const) {
    await mkdir(join(base, name), { mode: 0o700 });
    await writeFile(join(base, name, 'owner.json'), JSON.stringify(owner));
    await writeFile(join(base, name, 'machine.json'), JSON.stringify(facts));
  }
  t.deepEqual(await listVms(env), []);
  t.deepEqual(await readdir(base), []);
  t.is((await registerVm('dead', { environment: env })).name, 'dead');
});

test('listVms() leaves a folder that is just being made, and removes it when it stays half made', async (t) => {
  const env = await environment(t);
  const half = join(await registryFolder(env), 'half');
  await mkdir(half, { mode: 0o700 });
  await listVms(env);
  t.true((await stat(half)).isDirectory());
  await utimes(half, 1, 1);
  await listVms(env);
  await t.throwsAsync(stat(half), { code: 'ENOENT' });
});

test('registryFolder() refuses a folder that others may write in, and a symbolic link', async (t) => {
  const env = await environment(t);
  const base = await registryFolder(env);
  await chmod(base, 0o777);
  await t.throwsAsync(registryFolder(env), { code: 'ERR_REGISTRY' });
  await rm(base, { recursive: true });
  const elsewhere = await mkdtemp(join(tmpdir(), 'caisson-registry-'));
  t.teardown(() => rm(elsewhere, { recursive: true, force: true }));
  await symlink(elsewhere, base);
  await t.throwsAsync(registryFolder(env), { code: 'ERR_REGISTRY' });
});

test('registryFolder() does not trust a runtime folder that others may write in', async (t) => {
  const env = await environment(t);
  await chmod(env.XDG_RUNTIME_DIR, 0o777);
  t.false((await registryFolder(env)).startsWith(env.XDG_RUNTIME_DIR));
});

test('registerVm() refuses a path too long for a socket', async (t) => {
  const env = await environment(t);
  const long = join(env.XDG_RUNTIME_DIR, 'x'.repeat(90));
  await mkdir(long, { mode: 0o700 });
  await t.throwsAsync(registerVm('one', { environment: { XDG_RUNTIME_DIR: long } }), {
    message: /longer than 107 bytes/,
  });
});
