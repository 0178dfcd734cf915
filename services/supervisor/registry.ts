import { lstat, mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { tmpdir, userInfo } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { MAX_SOCKET_PATH_BYTES } from '../shared/socket_path.ts';
import { isVmName } from './vm_options.ts';

// Running machines, as folders of this user:  BASE/NAME/{machine.json, qmp.sock, nbd.sock}

const MAX_FACTS_BYTES = 16_384;
const MAX_AUTO_NAMES = 1000;

/** The registry cannot be used, or a name is taken or unknown. */
export class RegistryError extends Error {
  override readonly name = 'RegistryError';
  readonly code: 'ERR_REGISTRY' | 'ERR_VM_EXISTS' | 'ERR_VM_UNKNOWN';
  constructor(code: RegistryError['code'], text: string) {
    super(text);
    this.code = code;
  }
}

export interface RegisteredVm {
  readonly name: string;
  readonly directory: string;
  readonly qmpPath: string;
  readonly nbdPath: string;
  readonly pid: number;
  readonly uuid: string;
  readonly ramBytes: number;
  readonly harts: number;
  /** Since 1970, in `ms` */
  readonly startedMs: number;
}

export interface Registration {
  readonly name: string;
  readonly directory: string;
  readonly qmpPath: string;
  readonly nbdPath: string;
  describe(facts: { uuid: string; ramBytes: number; harts: number }): Promise<void>;
  remove(): Promise<void>;
}

/** The user's folder of machines: made if it is not there, and refused if somebody else could write in it. */
export async function registryFolder(environment: NodeJS.ProcessEnv = process.env): Promise<string> {
  const { uid } = userInfo();
  const runtime = environment.XDG_RUNTIME_DIR ?? `/run/user/${uid}`;
  const hasRuntime = runtime !== '' && (await isPrivateFolder(runtime, uid));
  const base = hasRuntime ? join(runtime, 'caisson') : join(tmpdir(), `caisson-${uid}`);
  await mkdir(base, { recursive: true, mode: 0o700 });
  if (!(await isPrivateFolder(base, uid))) {
    throw new RegistryError('ERR_REGISTRY', `Cannot use ${base}: expected a directory of yours with mode 0700`);
  }
  return base;
}

async function isPrivateFolder(path: string, uid: number): Promise<boolean> {
  const facts = await lstat(path).catch(() => undefined);
  if (facts === undefined || !facts.isDirectory()) return false;
  return uid < 0 || (facts.uid === uid && (facts.mode & 0o077) === 0);
}

/**
 * Takes a name. With `renameIfTaken` a free one that begins with it.
 * @throws RegistryError
 */
export async function registerVm(
  name: string,
  options: { renameIfTaken?: boolean; environment?: NodeJS.ProcessEnv } = {},
): Promise<Registration> {
  // A path would lead out of the registry, and what is there would look like a machine that died.
  if (!isVmName(name)) {
    throw new RegistryError(
      'ERR_REGISTRY',
      `Cannot name a machine ${JSON.stringify(name)}: expected 1..64 letters, digits, _ . -`,
    );
  }
  const base = await registryFolder(options.environment);
  const tries = options.renameIfTaken === true ? MAX_AUTO_NAMES : 1;
  for (let number = 1; number <= tries; number++) {
    const candidate = number === 1 ? name : `${name}-${number}`;
    const directory = join(base, candidate);
    if (await claim(directory)) return registration(candidate, directory);
  }
  throw new RegistryError('ERR_VM_EXISTS', `Cannot name this machine ${name}: one with this name runs (caisson list)`);
}

/** One machine by its name. @throws RegistryError */
export async function findVm(name: string, environment?: NodeJS.ProcessEnv): Promise<RegisteredVm> {
  const machines = await listVms(environment);
  const found = machines.find((vm) => vm.name === name);
  if (found !== undefined) return found;
  const running = machines.length === 0 ? 'none runs' : `running are ${machines.map((vm) => vm.name).join(', ')}`;
  throw new RegistryError('ERR_VM_UNKNOWN', `Cannot find a machine named ${name}: ${running}`);
}

/** All machines that run; what dead ones left behind is removed. */
export async function listVms(environment?: NodeJS.ProcessEnv): Promise<RegisteredVm[]> {
  const base = await registryFolder(environment);
  const machines: RegisteredVm[] = [];
  for (const name of (await readdir(base)).sort()) {
    const directory = join(base, name);
    if (!isVmName(name)) continue;
    const vm = await readFacts(name, directory);
    if (vm !== undefined) machines.push(vm);
    else await removeIfStale(directory);
  }
  return machines;
}

async function claim(directory: string): Promise<boolean> {
  for (const retry of [true, false]) {
    try {
      await mkdir(directory, { mode: 0o700 });
      await writeOwner(directory);
      return true;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
      if (retry) await removeIfStale(directory);
    }
  }
  return false;
}

function registration(name: string, directory: string): Registration {
  const paths = { qmpPath: join(directory, 'qmp.sock'), nbdPath: join(directory, 'nbd.sock') };
  for (const path of Object.values(paths)) {
    if (Buffer.byteLength(path) > MAX_SOCKET_PATH_BYTES) {
      throw new RegistryError('ERR_REGISTRY', `Cannot listen on ${path}: longer than ${MAX_SOCKET_PATH_BYTES} bytes`);
    }
  }
  return {
    name,
    directory,
    ...paths,
    describe: (facts) => writeWhole(join(directory, 'machine.json'), { ...facts, startedMs: Date.now() }),
    remove: () => rm(directory, { recursive: true, force: true }),
  };
}

/** Who holds a folder; the start time tells a process from a later one with the same number. */
async function writeOwner(directory: string): Promise<void> {
  await writeWhole(join(directory, 'owner.json'), { pid: process.pid, start: await startTime(process.pid) });
}

async function writeWhole(path: string, value: object): Promise<void> {
  await writeFile(`${path}.new`, JSON.stringify(value), { mode: 0o600 });
  await rename(`${path}.new`, path);
}

async function removeIfStale(directory: string): Promise<void> {
  const owner = await readJson(join(directory, 'owner.json'));
  if (owner === undefined) {
    // Just being made, or half of it was: give its maker a moment.
    const facts = await lstat(directory).catch(() => undefined);
    if (facts === undefined || Date.now() - facts.mtimeMs < 5000) return;
  } else if (await isAlive(owner)) return;
  await rm(directory, { recursive: true, force: true });
}

async function readFacts(name: string, directory: string): Promise<RegisteredVm | undefined> {
  const [owner, facts] = await Promise.all([
    readJson(join(directory, 'owner.json')),
    readJson(join(directory, 'machine.json')),
  ]);
  if (owner === undefined || facts === undefined || !(await isAlive(owner))) return undefined;
  return {
    name,
    directory,
    qmpPath: join(directory, 'qmp.sock'),
    nbdPath: join(directory, 'nbd.sock'),
    pid: Number(owner.pid),
    uuid: String(facts.uuid),
    ramBytes: Number(facts.ramBytes),
    harts: Number(facts.harts),
    startedMs: Number(facts.startedMs),
  };
}

async function readJson(path: string): Promise<Record<string, unknown> | undefined> {
  try {
    const text = await readFile(path, 'utf8');
    const value: unknown = text.length > MAX_FACTS_BYTES ? undefined : JSON.parse(text);
    return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : undefined;
  } catch {
    return undefined; // absent, or not written by us: treated alike
  }
}

async function isAlive(owner: Record<string, unknown>): Promise<boolean> {
  const { pid, start } = owner;
  if (typeof pid !== 'number' || !Number.isSafeInteger(pid) || pid < 1) return false;
  try {
    process.kill(pid, 0);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EPERM') return false;
  }
  const now = await startTime(pid);
  return now === undefined || start === undefined || now === start;
}

/** Field 22 of /proc/PID/stat (proc(5)): in clock ticks since boot; undefined where there is no /proc */
async function startTime(pid: number): Promise<string | undefined> {
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => undefined);
  return stat?.slice(stat.lastIndexOf(')') + 2).split(' ')[19];
}
