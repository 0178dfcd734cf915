import { statSync } from 'node:fs';
import { dirname, join, normalize } from 'node:path';
import test from 'ava';
import { QMP_SCHEMA } from '../../protocols/qmp/mod.ts';
import { renderCliPage, verbNames } from '../../scripts/build_docs.ts';
import { exists, listFiles, ROOT, readText } from './source_files.ts';

const PAGES = [...listFiles('docs'), ...listFiles().filter((path) => !path.includes('/'))].filter((path) =>
  path.endsWith('.md'),
);
const FOLDERS = listFiles()
  .filter((path) => path.includes('/'))
  .map((path) => path.slice(0, path.indexOf('/')));
const TOP_FOLDERS = new Set(FOLDERS);
/** Shorthand of the table in SECURITY.md */
const SHORTHAND: Readonly<Record<string, string>> = { P: 'protocols', S: 'services', E: 'emulator', T: 'test' };

const withoutCodeBlocks = (text: string) => text.replace(/^```[\s\S]*?^```$/gm, '');

/** Targets of links in a page that are files of ours, as paths from the root. */
function linkedPaths(page: string, text: string): string[] {
  return [...withoutCodeBlocks(text).matchAll(/\]\(([^)\s]+)\)/g)]
    .map((match) => match[1]!)
    .filter((target) => !/^(?:[a-z]+:|#)/.test(target))
    .map((target) => normalize(join(dirname(page), target.replace(/#.*$/, ''))));
}

/** `a/{b,c}.ts` as both */
function expandBraces(path: string): string[] {
  const match = /^(.*?)\{([^{}]*)\}(.*)$/.exec(path);
  return match === null ? [path] : match[2]!.split(',').flatMap((part) => expandBraces(match[1]! + part + match[3]!));
}

/** Paths of ours that stand between backticks, from the root or in SECURITY.md's shorthand. */
function mentionedPaths(text: string): string[] {
  const found: string[] = [];
  for (const line of withoutCodeBlocks(text).split('\n')) {
    for (const cell of line.split('|')) {
      let folder: string | undefined;
      for (const [, span] of cell.matchAll(/`([^`]+)`/g)) {
        const short = /^([PSET]) (\S+)$/.exec(span!);
        let path: string | undefined;
        if (short !== null) path = `${SHORTHAND[short[1]!]}/${short[2]}`;
        else if (/^[\w.@-]+(?:\/[\w.@*{},-]*)+$/.test(span!) && TOP_FOLDERS.has(span!.split('/')[0]!)) path = span!;
        else if (folder !== undefined && /^[\w.]+\.ts$/.test(span!)) path = `${folder}/${span}`;
        if (path === undefined) continue;
        if (short !== null) folder = /\.\w+$/.test(path) ? dirname(path) : path;
        found.push(...expandBraces(path));
      }
    }
  }
  return found;
}

function isThere(path: string): boolean {
  if (!path.includes('*')) return exists(path);
  const pattern = new RegExp(`^${path.split('*').map(RegExp.escape).join('[^/]*')}(?:/|$)`);
  return listFiles().some((file) => pattern.test(file));
}

test('every file that a page links to or names exists', (t) => {
  t.true(PAGES.length > 15, `only ${PAGES.length} pages were found`);
  const missing = PAGES.flatMap((page) => {
    const text = readText(page);
    return [...linkedPaths(page, text), ...mentionedPaths(text)]
      .filter((path) => !isThere(path))
      .map((path) => `${page} names ${path}`);
  });
  t.deepEqual(missing, []);
});

test('linkedPaths() and mentionedPaths() see what they look for', (t) => {
  t.deepEqual(linkedPaths('docs/a.md', '[x](../README.md#top) [y](https://example.com) [z](b.md)'), [
    'README.md',
    'docs/b.md',
  ]);
  t.deepEqual(mentionedPaths('see `protocols/nbd/{a,b}.ts` and `T services/vnc/x.test.ts`, `y.test.ts`; `not/ours`'), [
    'protocols/nbd/a.ts',
    'protocols/nbd/b.ts',
    'test/services/vnc/x.test.ts',
    'test/services/vnc/y.test.ts',
  ]);
  t.false(isThere('emulator/isa/no_such_rows_*.ts'));
  t.true(isThere('emulator/isa/rows_*.ts'));
});

test('docs/cli.md has the help of every verb as it is; else: node scripts/run.mjs scripts/build_docs.ts', async (t) => {
  t.true(verbNames().length >= 9);
  const page = readText('docs/cli.md');
  t.is(await renderCliPage(page), page);
});

test('pages use only verbs that exist', (t) => {
  const known = new Set(verbNames());
  const wrong = PAGES.flatMap((page) =>
    [...readText(page).matchAll(/(?:^|\n)(?:\$ )?bin\/caisson ([a-z]\w*)/g)]
      .filter((match) => !known.has(match[1]!))
      .map((match) => `${page}: caisson ${match[1]}`),
  );
  t.deepEqual(wrong, []);
});

/** Names of a command's arguments, by the schema */
function argumentNames(given: unknown): string[] {
  if (given === undefined) return [];
  if (typeof given === 'object') return Object.keys(given as object);
  const type = (QMP_SCHEMA.types as Record<string, unknown>)[given as string] as {
    struct?: object;
    union?: { base: object; variants: Record<string, string> };
  };
  if (type.union === undefined) return Object.keys(type.struct ?? {});
  return [...Object.keys(type.union.base), ...Object.values(type.union.variants).flatMap(argumentNames)];
}

test('docs/qmp.md has a row for every command of the schema, with its arguments, and none that is not there', (t) => {
  const rows = new Map(
    [...readText('docs/qmp.md').matchAll(/^\| `([\w-]+)` \|([^|]*)\|[^|]+\|$/gm)].map((match) => [
      match[1]!,
      [...match[2]!.matchAll(/`([^`]+)`/g)].map((argument) => argument[1]!),
    ]),
  );
  const expected = Object.entries(QMP_SCHEMA.commands).map(([name, command]) => [
    name,
    argumentNames((command as { arguments?: unknown }).arguments),
  ]);
  t.deepEqual(Object.fromEntries(rows), Object.fromEntries(expected));
});

test('docs/qmp.md names every event of the schema', (t) => {
  const page = readText('docs/qmp.md');
  for (const event of Object.keys(QMP_SCHEMA.events)) t.true(page.includes(`\`${event}\``), event);
});

test('samples that say where they are from are still there', (t) => {
  let samples = 0;
  for (const page of PAGES) {
    for (const [, path, code] of readText(page).matchAll(/<!-- from (\S+) -->\n```ts\n([\s\S]*?)```/g)) {
      samples++;
      t.true(readText(path!).includes(code!), `${page}: not in ${path} any more`);
    }
  }
  t.true(samples > 0);
});

test('every decision is in the list, and pictures are small', (t) => {
  const index = readText('docs/decisions/README.md');
  for (const path of listFiles('docs/decisions')) {
    const name = path.slice('docs/decisions/'.length);
    if (name !== 'README.md') t.true(index.includes(`(${name})`), name);
  }
  for (const path of listFiles('docs/images')) t.true(statSync(join(ROOT, path)).size <= 200_000, path);
});
