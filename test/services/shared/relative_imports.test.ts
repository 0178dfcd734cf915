import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import test from 'ava';

const HOOK = new URL('../../../services/shared/relative_imports.mjs', import.meta.url).href;
const folder = mkdtempSync(join(tmpdir(), 'caisson-imports-'));
test.after.always(() => rmSync(folder, { recursive: true, force: true }));

const importOf = (specifier: string): string => `import(${JSON.stringify(specifier)})`;

function run(main: string) {
  const file = join(folder, 'main.mjs');
  writeFileSync(
    file,
    `import { resolveRelativeImports } from ${JSON.stringify(HOOK)};\nresolveRelativeImports();\n${main}`,
  );
  return spawnSync(process.execPath, [file], { encoding: 'utf8' });
}

test('resolveRelativeImports() finds files by URL, as typed modules, and leaves packages to Node', (t) => {
  mkdirSync(join(folder, 'part'), { recursive: true });
  mkdirSync(join(folder, 'node_modules', 'some'), { recursive: true });
  writeFileSync(join(folder, 'part', 'a.ts'), "import { b } from '../b.ts';\nexport const a: number = b + 1;\n");
  writeFileSync(
    join(folder, 'b.ts'),
    "import { join } from 'node:path';\nimport some from 'some';\nexport const b: number = join('x', 'y').length + some;\n",
  );
  writeFileSync(join(folder, 'node_modules', 'some', 'package.json'), '{"main":"./lib"}');
  // As packages do: without an extension
  writeFileSync(join(folder, 'node_modules', 'some', 'lib.js'), "module.exports = require('./more');\n");
  writeFileSync(join(folder, 'node_modules', 'some', 'more.js'), 'module.exports = 40;\n');
  const { stdout, stderr } = run(`console.log((await ${importOf('./part/a.ts')}).a);`);
  t.is(stdout, '44\n', stderr);
});

test('resolveRelativeImports(): a file that is not there is an error with its name', (t) => {
  const { stdout } = run(`await ${importOf('./nothing.ts')}.catch((error) => console.log(error.code, error.message));`);
  t.regex(stdout, /^(ERR_MODULE_NOT_FOUND|ENOENT) .*nothing\.ts/);
});

test('every entry of a process or a thread lets its files find each other by URL, before it imports them', (t) => {
  const services = new URL('../../../services/', import.meta.url);
  const entries = readdirSync(services, { recursive: true, encoding: 'utf8' }).filter((path) =>
    path.endsWith('_entry.mjs'),
  );
  t.is(entries.length, 3);
  for (const path of entries) {
    const text = readFileSync(new URL(path, services), 'utf8');
    const [hook, main] = [text.indexOf('\nresolveRelativeImports();'), text.indexOf('await import(')];
    t.true(hook > 0 && hook < main, path);
  }
});
