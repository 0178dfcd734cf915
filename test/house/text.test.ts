import test from 'ava';
import { listFiles, readText } from './source_files.ts';

/** Written by tools, or bytes */
const NOT_PROSE =
  /(?:^|\/)package-lock\.json$|_image\.ts$|_wasm\.ts$|\.(?:png|ico|wasm|bin|elf|img|gz|zst|xz|pem|der|woff2?)$/;

/** Where packages come from is the user's configuration, never ours. Put together here so that this file passes. */
const REGISTRY_HOSTS = [
  ['registry', 'npmjs', 'org'],
  ['registry', 'yarnpkg', 'com'],
  ['deb', 'debian', 'org'],
  ['ftp', 'debian', 'org'],
  ['security', 'debian', 'org'],
  ['snapshot', 'debian', 'org'],
  ['archive', 'ubuntu', 'com'],
  ['ports', 'ubuntu', 'com'],
  ['nodejs', 'org/dist'],
  ['pypi', 'org'],
  ['proxy', 'golang', 'org'],
  ['static', 'crates', 'io'],
].map((parts) => parts.join('.'));

const files = listFiles().filter((path) => !NOT_PROSE.test(path));

function offences(path: string, text: string): string[] {
  const found: string[] = [];
  for (const [index, line] of text.split('\n').entries()) {
    const at = `${path}:${index + 1}`;
    for (const host of REGISTRY_HOSTS) if (line.includes(host)) found.push(`${at} names the registry ${host}`);
    const mark = /\b(?:TODO|FIXME|XXX|HACK)\b/.exec(line)?.[0];
    if (mark !== undefined && !/(?:TODO|FIXME|XXX|HACK)\(#\d+\)/.test(line))
      found.push(`${at} has ${mark} without an issue`);
  }
  return found;
}

test('no file names a registry, and no loose end stands without its issue', (t) => {
  t.true(files.length > 100);
  t.deepEqual(
    files.filter((path) => path !== 'test/house/text.test.ts').flatMap((path) => offences(path, readText(path))),
    [],
  );
});

test('offences() finds what it looks for', (t) => {
  t.is(offences('a', `x\nhttps://${REGISTRY_HOSTS[0]}/ws`).length, 1);
  t.is(offences('a', '// TODO: later').length, 1);
  t.is(offences('a', '// TODO(#12): later').length, 0);
  t.is(offences('a', 'mastodon').length, 0);
});

interface PackageFile {
  readonly dependencies: Record<string, string>;
  readonly devDependencies: Record<string, string>;
  readonly optionalDependencies: Record<string, string>;
}

const PACKAGE = JSON.parse(readText('package.json')) as PackageFile;
const DEPENDENCIES = { ...PACKAGE.dependencies, ...PACKAGE.devDependencies, ...PACKAGE.optionalDependencies };

test('every dependency has a line in docs/dependencies.md that says why, and no line is left over', (t) => {
  const rows = [...readText('docs/dependencies.md').matchAll(/^\| `([^`]+)` +\| (.*?) +\| (.*?) +\|$/gm)];
  for (const [, name, why, others] of rows) {
    t.true(name! in DEPENDENCIES, `${name} is not in package.json`);
    t.true(why!.length > 20 && others!.length > 10, `${name}: say why, and what else was looked at`);
  }
  const described = new Set(rows.map((row) => row[1]));
  for (const name of Object.keys(DEPENDENCIES)) t.true(described.has(name), `${name} has no line`);
});

test('every dependency has one exact version', (t) => {
  for (const [name, version] of Object.entries(DEPENDENCIES)) t.regex(version, /^\d+\.\d+\.\d+$/, name);
});
