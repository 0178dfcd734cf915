import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { mkdir, open, readdir, readFile, rename, rm, stat, statfs, writeFile } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Apt, type AptPackage, ARCHITECTURE } from './apt.ts';
import { DebianError } from './debian_error.ts';
import { assembleInitramfs, WANTED_MODULES } from './initramfs.ts';
import { moduleName, resolveModules } from './kernel_modules.ts';
import { TarFile } from './tar.ts';
import { runTool } from './tool.ts';

/** forky and sid serve riscv64 as we need it; trixie's kernel works too. Depend on none of them. */
export const DEFAULT_SUITES: readonly string[] = ['forky', 'sid', 'trixie'];
/** Raised when the initramfs must be made anew from the same packages */
export const RECIPE = 7;
const MIB = 1 << 20;
/** Packages, the unpacked kernel and modules, and the index, at their largest moment */
const NEEDED_BYTES = 512 * MIB;
const LOCK_WAIT_MS = 10 * 60_000;

export interface DebianProgress {
  readonly phase: 'wait' | 'index' | 'download' | 'unpack' | 'assemble';
  readonly text: string;
  /** Both in `bytes`, in the phase `download` */
  readonly doneBytes?: number;
  readonly totalBytes?: number;
}

export interface PrepareOptions {
  /** Default: `$XDG_CACHE_HOME/caisson/debian` or `~/.cache/caisson/debian` */
  readonly cacheDir?: string;
  /** In the order of trial */
  readonly suites?: readonly string[];
  /** Fetch again what the cache holds already */
  readonly refresh?: boolean;
  readonly onProgress?: (event: DebianProgress) => void;
  readonly signal?: AbortSignal;
}

export interface DebianGuest {
  /** A plain RISC-V `Image` */
  readonly kernelPath: string;
  /** An uncompressed cpio archive: the kernel unpacks that in less guest time than a compressed one */
  readonly initrdPath: string;
  /** Of the kernel, as in `uname -r` */
  readonly version: string;
  readonly suite: string;
  /** True where nothing had to be fetched */
  readonly cached: boolean;
}

interface Manifest {
  readonly recipe: number;
  readonly version: string;
  readonly suite: string;
  readonly kernel: FileProof;
  readonly initrd: FileProof;
}

interface FileProof {
  readonly name: string;
  readonly sizeBytes: number;
  readonly sha256: string;
}

/** Where all that can be fetched again is kept. */
export function cacheFolder(environment: NodeJS.ProcessEnv = process.env): string {
  const base = environment.XDG_CACHE_HOME;
  return join(base?.startsWith('/') ? base : join(homedir(), '.cache'), 'caisson');
}

/**
 * Debian's own riscv64 kernel and an initramfs made from Debian packages, fetched once by the system's apt client.
 * @throws DebianError with a text for the user; AbortError
 */
export async function prepareDebian(options: PrepareOptions = {}): Promise<DebianGuest> {
  const folder = options.cacheDir ?? join(cacheFolder(), 'debian');
  const progress = options.onProgress ?? (() => undefined);
  await mkdir(folder, { recursive: true });
  await using _lock = await lockFolder(folder, progress, options.signal);
  if (options.refresh !== true) {
    const cached = await readCached(folder);
    if (cached !== undefined) return cached;
  }
  const { bavail, bsize } = await statfs(folder);
  if (bavail * bsize < NEEDED_BYTES)
    throw new DebianError(
      'ERR_DEBIAN_SPACE',
      `Cannot fetch Debian into ${folder}: ${Math.floor((bavail * bsize) / MIB)} MiB are free, ${NEEDED_BYTES / MIB} MiB are needed`,
    );
  const apt = await Apt.open({ folder: join(folder, 'apt'), signal: options.signal });
  const { suite, packages } = await findPackages(apt, options.suites ?? DEFAULT_SUITES, progress);
  const totalBytes = packages.reduce((sum, item) => sum + item.sizeBytes, 0);
  const debs: string[] = [];
  let before = 0;
  for (const item of packages) {
    const at = before;
    const report = (doneBytes: number) =>
      progress({ phase: 'download', text: `${item.name} ${item.version}`, doneBytes: at + doneBytes, totalBytes });
    debs.push(await apt.download(item.name, report));
    before += item.sizeBytes;
  }
  const made = await buildGuest(apt, folder, debs, progress, options.signal);
  const manifest: Manifest = {
    recipe: RECIPE,
    version: made.version,
    suite,
    kernel: await store(folder, `vmlinuz-${made.version}`, made.kernel),
    initrd: await store(folder, `initrd-${made.version}-${RECIPE}`, made.initrd),
  };
  await store(folder, 'manifest.json', Buffer.from(`${JSON.stringify(manifest, undefined, 2)}\n`));
  for (const path of debs) await rm(path); // 128 MB that nobody needs again
  for (const name of await readdir(folder))
    if (/^(?:vmlinuz|initrd)-/.test(name) && name !== manifest.kernel.name && name !== manifest.initrd.name)
      await rm(join(folder, name));
  const guest = await readCached(folder);
  if (guest === undefined) throw new DebianError('ERR_DEBIAN_SPACE', `Cannot keep the guest in ${folder}: it changed`);
  return { ...guest, cached: false };
}

async function findPackages(
  apt: Apt,
  suites: readonly string[],
  progress: (event: DebianProgress) => void,
): Promise<{ suite: string; packages: AptPackage[] }> {
  const repositories = await apt.repositories();
  if (repositories.length === 0)
    throw new DebianError(
      'ERR_DEBIAN_NO_SOURCES',
      'Cannot fetch Debian packages: the apt sources of this system name no Debian repository',
    );
  const reasons = new Set<string>();
  for (const suite of suites) {
    for (const repository of repositories) {
      progress({ phase: 'index', text: `index of Debian ${suite} for ${ARCHITECTURE} (10 MB)` });
      try {
        await apt.update(repository, suite);
        const kernel = await kernelPackages(apt);
        return { suite, packages: [await apt.show('busybox-static'), ...kernel] };
      } catch (error) {
        if (!(error instanceof DebianError)) throw error;
        reasons.add(error.message.replace(/^Cannot fetch the index of Debian \S+: /, ''));
      }
    }
  }
  const text = `Cannot fetch the package index of Debian (${suites.join(', ')}): ${[...reasons].join('; ')}`;
  throw new DebianError('ERR_DEBIAN_OFFLINE', text);
}

/** From the metapackage to those that hold files: one package in older suites, kernel and modules apart in newer. */
async function kernelPackages(apt: Apt): Promise<AptPackage[]> {
  const found = new Map<string, AptPackage>();
  const visit = async (name: string, depth: number): Promise<void> => {
    if (found.has(name) || depth > 4 || found.size > 8) return;
    const item = await apt.show(name);
    found.set(name, item);
    for (const needed of item.depends)
      if (/^linux-(?:image|binary|modules)-/.test(needed)) await visit(needed, depth + 1);
  };
  await visit(`linux-image-${ARCHITECTURE}`, 0);
  return [...found.values()].filter((item) => item.sizeBytes > 64 * 1024);
}

async function buildGuest(
  apt: Apt,
  folder: string,
  debs: readonly string[],
  progress: (event: DebianProgress) => void,
  signal: AbortSignal | undefined,
): Promise<{ version: string; kernel: Uint8Array; initrd: Uint8Array }> {
  const scratch = join(folder, 'scratch');
  await rm(scratch, { recursive: true, force: true });
  await mkdir(scratch);
  const archives: TarFile[] = [];
  try {
    for (const [index, deb] of debs.entries()) {
      progress({ phase: 'unpack', text: `package ${index + 1} of ${debs.length}` });
      const path = join(scratch, `${index}.tar`);
      const run = await runTool('dpkg-deb', ['--fsys-tarfile', deb], { signal, toFile: path });
      if (run.status !== 0)
        throw new DebianError('ERR_DEBIAN_PACKAGE', `Cannot unpack ${deb}: ${run.errorText.trim()}`);
      archives.push(new TarFile(path));
    }
    const find = (pattern: RegExp): Uint8Array | undefined => {
      for (const archive of archives)
        for (const path of archive.paths) if (pattern.test(path)) return archive.read(path);
      return undefined;
    };
    const kernel = find(/(?:^|\/)vmlinu[xz](?:-[^/]*)?$/);
    const busybox = find(/^(?:usr\/)?bin\/busybox$/);
    if (kernel === undefined) throw new DebianError('ERR_DEBIAN_PACKAGE', 'Cannot find the kernel in its package');
    if (busybox === undefined) throw new DebianError('ERR_DEBIAN_PACKAGE', 'Cannot find busybox in its package');
    const paths = new Map<string, { archive: TarFile; path: string }>();
    let version = '';
    for (const archive of archives) {
      for (const path of archive.paths) {
        const inside = /(?:^|\/)lib\/modules\/([^/]+)\/kernel\/.*\.ko(?:\.[a-z0-9]+)?$/.exec(path)?.[1];
        if (inside === undefined) continue;
        version = inside;
        paths.set(moduleName(path), { archive, path });
      }
    }
    progress({ phase: 'assemble', text: `initramfs for Linux ${version}` });
    const { modules } = await resolveModules(WANTED_MODULES, async (name) => {
      const found = paths.get(name);
      if (found === undefined) return undefined;
      const bytes = found.archive.read(found.path);
      const suffix = /\.ko(\.[a-z0-9]+)?$/.exec(found.path)?.[1];
      if (suffix === undefined) return bytes;
      const file = join(scratch, `${name}.ko${suffix}`);
      await writeFile(file, bytes);
      return await apt.decompress(file);
    });
    return { version, kernel, initrd: await assembleInitramfs(busybox, modules) };
  } finally {
    for (const archive of archives) archive[Symbol.dispose]();
    await rm(scratch, { recursive: true, force: true });
  }
}

/** Whole or not at all: a reader never sees half a file. */
async function store(folder: string, name: string, bytes: Uint8Array): Promise<FileProof> {
  const path = join(folder, name);
  const handle = await open(`${path}.new`, 'w');
  try {
    await handle.writeFile(bytes);
    await handle.sync();
  } finally {
    await handle.close();
  }
  await rename(`${path}.new`, path);
  return { name, sizeBytes: bytes.length, sha256: createHash('sha256').update(bytes).digest('hex') };
}

async function readCached(folder: string): Promise<DebianGuest | undefined> {
  const text = await readFile(join(folder, 'manifest.json'), 'utf8').catch(() => undefined);
  if (text === undefined) return undefined;
  let manifest: Manifest;
  try {
    manifest = JSON.parse(text) as Manifest;
    if (manifest.recipe !== RECIPE) return undefined;
    for (const file of [manifest.kernel, manifest.initrd]) {
      const path = join(folder, file.name);
      if ((await stat(path)).size !== file.sizeBytes) return undefined;
      if (
        createHash('sha256')
          .update(await readFile(path))
          .digest('hex') !== file.sha256
      )
        return undefined;
    }
  } catch {
    return undefined; // damaged or from another version: fetched again
  }
  const { version, suite, kernel, initrd } = manifest;
  return { kernelPath: join(folder, kernel.name), initrdPath: join(folder, initrd.name), version, suite, cached: true };
}

/** One preparation at a time for each folder; a lock whose process is gone does not count. */
async function lockFolder(
  folder: string,
  progress: (event: DebianProgress) => void,
  signal: AbortSignal | undefined,
): Promise<AsyncDisposable> {
  const path = join(folder, 'lock');
  const deadline = Date.now() + LOCK_WAIT_MS;
  for (let told = false; ; told = true) {
    try {
      await writeFile(path, `${process.pid}\n`, { flag: 'wx' });
      return { [Symbol.asyncDispose]: () => rm(path, { force: true }) };
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
    }
    const owner = Number(await readFile(path, 'utf8').catch(() => '0'));
    if (owner > 0 && !isAlive(owner)) {
      await rm(path, { force: true });
      continue;
    }
    if (Date.now() > deadline)
      throw new DebianError(
        'ERR_DEBIAN_TOOL',
        `Cannot prepare ${folder}: process ${owner} has held ${path} for too long`,
      );
    if (!told) progress({ phase: 'wait', text: `process ${owner} is preparing the same guest` });
    await sleep(300, undefined, signal === undefined ? {} : { signal });
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}

/** For tests and for `make room`: true where a guest is ready without a network. */
export function isPrepared(cacheDir: string = join(cacheFolder(), 'debian')): boolean {
  return existsSync(join(cacheDir, 'manifest.json'));
}
