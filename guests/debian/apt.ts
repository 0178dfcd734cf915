import { createHash } from 'node:crypto';
import { createReadStream, existsSync, writeFileSync } from 'node:fs';
import { mkdir, readFile, rename, rm, stat, utimes, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { DebianError } from './debian_error.ts';
import { runTool } from './tool.ts';

/** Of the guest, not of this system */
export const ARCHITECTURE = 'riscv64';
const APT_HELPER = '/usr/lib/apt/apt-helper';
const KEYRINGS = ['/usr/share/keyrings/debian-archive-keyring.gpg', '/usr/share/keyrings/debian-archive-keyring.pgp'];
/** Suites of the main archive; others' repositories have other names, or refuse the key */
const MAIN_SUITE = /^(?:(?:old){0,2}stable|testing|unstable|sid|[a-z]+)(?:-updates|-backports)?$/;
/** A repository that answers nothing, or the wrong thing, is not asked for ever */
const MAX_REPOSITORIES = 4;

export interface AptPackage {
  readonly name: string;
  readonly version: string;
  readonly sizeBytes: number;
  /** Names in Depends, first alternatives, without versions */
  readonly depends: readonly string[];
}

export interface AptOptions {
  /** Lists, caches and configuration live here; the system's apt state is neither read nor written */
  readonly folder: string;
  readonly signal?: AbortSignal | undefined;
}

/**
 * The system's own apt client, asked for another architecture and suite with private state directories: no root,
 * no change to the system. Proxies and repository addresses come from the system's configuration; packages are
 * believed because apt has checked their hashes against an index signed by Debian's archive key.
 */
export class Apt {
  readonly #folder: string;
  readonly #signal: AbortSignal | undefined;
  readonly #configuration: string;

  private constructor(options: AptOptions) {
    this.#folder = options.folder;
    this.#signal = options.signal;
    this.#configuration = join(options.folder, 'apt.conf');
  }

  /** @throws DebianError ERR_DEBIAN_NO_APT */
  static async open(options: AptOptions): Promise<Apt> {
    const version = await runTool('apt-get', ['--version'], { signal: options.signal }).catch((error: unknown) => {
      if (error instanceof DebianError) return undefined;
      throw error;
    });
    if (version === undefined || version.status !== 0 || !existsSync(APT_HELPER))
      throw new DebianError('ERR_DEBIAN_NO_APT', 'Cannot fetch Debian packages: this system has no apt');
    await mkdir(options.folder, { recursive: true });
    const apt = new Apt(options);
    await apt.#configure();
    return apt;
  }

  /** Base addresses of the Debian repositories that this system is configured for, most used first. */
  async repositories(): Promise<string[]> {
    const { output } = await runTool('apt-get', ['update', '--print-uris'], { signal: this.#signal });
    return debianRepositories(output.toString());
  }

  /**
   * Fetches and checks the signed index of one suite.
   * @throws DebianError with apt's own words
   */
  async update(repository: string, suite: string): Promise<void> {
    const keyring = KEYRINGS.find((path) => existsSync(path));
    if (keyring === undefined)
      throw new DebianError('ERR_DEBIAN_NO_SOURCES', `Cannot check Debian's signatures: ${KEYRINGS[0]} is missing`);
    await writeFile(
      join(this.#folder, 'sources.list'),
      `deb [arch=${ARCHITECTURE} signed-by=${keyring}] ${repository} ${suite} main\n`,
    );
    const run = await this.#apt('apt-get', ['update', '-q', '--error-on=any', '-o', 'Acquire::Retries=1']);
    if (run.status !== 0)
      throw new DebianError(
        'ERR_DEBIAN_OFFLINE',
        `Cannot fetch the index of Debian ${suite}: ${aptReason(run.errorText)}`,
      );
  }

  /** @throws DebianError ERR_DEBIAN_PACKAGE where the suite has no such package */
  async show(name: string): Promise<AptPackage> {
    const run = await this.#apt('apt-cache', ['show', '--no-all-versions', name]);
    const field = (key: string) => new RegExp(`^${key}: (.*)$`, 'm').exec(run.output.toString())?.[1];
    const version = field('Version');
    const sizeBytes = Number(field('Size'));
    if (run.status !== 0 || version === undefined || !Number.isSafeInteger(sizeBytes))
      throw new DebianError('ERR_DEBIAN_PACKAGE', `Cannot find the package ${name}: the suite does not have it`);
    const depends = (field('Depends') ?? '')
      .split(',')
      .map((term) => /^\s*([a-z0-9][a-z0-9+.-]*)/.exec(term)?.[1])
      .filter((term) => term !== undefined);
    return { name, version, sizeBytes, depends };
  }

  /**
   * Downloads one package, or the rest of it, and gives its path. The hash is from the signed index.
   * @throws DebianError ERR_DEBIAN_OFFLINE with apt's own words
   */
  async download(name: string, onBytes: (doneBytes: number) => void): Promise<string> {
    const uris = await this.#apt('apt-get', ['download', '--print-uris', name]);
    const line = /^'([^']+)' (\S+) (\d+) SHA256:([0-9a-f]{64})$/m.exec(uris.output.toString());
    if (line === null)
      throw new DebianError('ERR_DEBIAN_PACKAGE', `Cannot fetch ${name}: apt names no file with a SHA-256 for it`);
    const [, uri, , size, sha256] = line as unknown as [string, string, string, string, string];
    const folder = join(this.#folder, 'packages');
    await mkdir(folder, { recursive: true });
    const target = join(folder, `${name}_${sha256.slice(0, 16)}.deb`);
    await this.fetchFile(uri, target, sha256, onBytes);
    onBytes(Number(size));
    return target;
  }

  /**
   * Fetches one file through apt's own transport: its proxies, its retries. A file that is there with that hash is
   * kept; an interrupted one is continued where the server gives dates and ranges, and starts over elsewhere.
   * @throws DebianError ERR_DEBIAN_OFFLINE with apt's own words
   */
  async fetchFile(uri: string, target: string, sha256: string, onBytes: (doneBytes: number) => void): Promise<void> {
    if ((await sha256Of(target)) === sha256) return;
    const partial = `${target}.partial`;
    // apt continues a file only when its date is the server's, and an interrupted apt leaves today's: keep the date.
    const dateFile = `${partial}.date`;
    const date = Date.parse(await readFile(dateFile, 'utf8').catch(() => ''));
    if (Number.isFinite(date) && existsSync(partial)) await utimes(partial, date / 1000, date / 1000);
    else await rm(partial, { force: true });
    const poll = setInterval(() => {
      stat(partial).then(
        (status) => onBytes(status.size),
        () => undefined, // not there yet
      );
    }, 200);
    try {
      const debug = ['-o', 'Debug::Acquire::http=1', '-o', 'Debug::Acquire::https=1'];
      const run = await this.#apt(APT_HELPER, ['download-file', uri, partial, `SHA256:${sha256}`, ...debug], (text) => {
        const modified = /^Last-Modified: (.+?)\r?$/i.exec(text)?.[1];
        if (modified !== undefined) writeFileSync(dateFile, modified);
      });
      if (run.status !== 0 || (await sha256Of(partial)) !== sha256)
        throw new DebianError('ERR_DEBIAN_OFFLINE', `Cannot fetch ${target}: ${aptReason(run.errorText)}`);
    } finally {
      clearInterval(poll);
    }
    await rename(partial, target);
    await rm(dateFile, { force: true });
  }

  /** Any compressed file that apt knows (`.xz` above all), as plain bytes: no need for xz-utils. */
  async decompress(path: string): Promise<Buffer> {
    const run = await runTool(APT_HELPER, ['cat-file', path], { signal: this.#signal });
    if (run.status !== 0)
      throw new DebianError('ERR_DEBIAN_TOOL', `Cannot decompress ${path}: ${aptReason(run.errorText)}`);
    return run.output;
  }

  async #configure(): Promise<void> {
    for (const name of ['state/lists/partial', 'cache/archives/partial', 'empty'])
      await mkdir(join(this.#folder, name), { recursive: true });
    await writeFile(join(this.#folder, 'status'), '');
    await writeFile(this.#configuration, this.#configurationText());
  }

  #apt(command: string, args: readonly string[], onErrorLine?: (line: string) => void) {
    const options = onErrorLine === undefined ? {} : { onErrorLine };
    return runTool(command, ['-c', this.#configuration, ...args], {
      signal: this.#signal,
      cwd: this.#folder,
      ...options,
    });
  }

  #configurationText(): string {
    const cleared = [
      ...['APT::Update::Pre-Invoke', 'APT::Update::Post-Invoke', 'APT::Update::Post-Invoke-Success'],
      ...['DPkg::Pre-Invoke', 'DPkg::Post-Invoke', 'APT::Architectures', 'Acquire::Languages'],
    ];
    const path = (name: string) => JSON.stringify(join(this.#folder, name));
    return [
      ...cleared.map((name) => `#clear ${name};`),
      `APT::Architecture "${ARCHITECTURE}";`,
      `APT::Architectures { "${ARCHITECTURE}"; };`,
      // The unprivileged user that apt changes to when root could not write into the user's cache folder.
      `APT::Sandbox::User "";`,
      `Acquire::Languages "none";`,
      `Dir::State ${path('state')};`,
      `Dir::State::status ${path('status')};`,
      `Dir::Cache ${path('cache')};`,
      `Dir::Etc::sourcelist ${path('sources.list')};`,
      `Dir::Etc::sourceparts ${path('empty')};`,
      `Dir::Etc::preferences ${path('empty/none')};`,
      `Dir::Etc::preferencesparts ${path('empty')};`,
      '',
    ].join('\n');
  }
}

/** From `apt-get update --print-uris`: what stands before `/dists/SUITE/` for suites of Debian's main archive. */
export function debianRepositories(printedUris: string): string[] {
  const uses = new Map<string, number>();
  for (const match of printedUris.matchAll(/^'([^']+?)\/dists\/([^/']+)\/InRelease'/gm)) {
    const [, base, suite] = match as unknown as [string, string, string];
    if (MAIN_SUITE.test(suite)) uses.set(base, (uses.get(base) ?? 0) + 1);
  }
  return [...uses]
    .sort((a, b) => b[1] - a[1])
    .map(([base]) => base)
    .slice(0, MAX_REPOSITORIES);
}

/** The error line of apt that names the cause; its summaries and debug output are left out. */
function aptReason(errorText: string): string {
  const lines = errorText.split('\n').filter((line) => /^[EW]: /.test(line));
  const cause = lines.filter((line) => !/Download Failed|Some index files failed|Failed to fetch some/.test(line));
  return (
    (cause[0] ?? lines.at(-1) ?? '').replace(/^[EW]: (?:Failed to fetch \S+ +)?/, '').trim() || 'apt gave no reason'
  );
}

async function sha256Of(path: string): Promise<string | undefined> {
  if (!existsSync(path)) return undefined;
  const hash = createHash('sha256');
  for await (const chunk of createReadStream(path)) hash.update(chunk as Buffer);
  return hash.digest('hex');
}
