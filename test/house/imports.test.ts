import test from 'ava';
import { exists, listFiles, readImports, readText, resolveImport } from './source_files.ts';

// protocols ← emulator ← services ← cli and library; guests stand beside; nothing that ships imports test.

interface Layer {
  /** Top folders that it may import, besides itself */
  readonly ours: readonly string[];
  /** `node:` modules */
  readonly node: boolean;
  /** Packages of the registry; undefined: any */
  readonly packages: readonly string[] | undefined;
}

const LAYERS: Readonly<Record<string, Layer>> = {
  protocols: { ours: [], node: false, packages: [] },
  emulator: { ours: ['protocols'], node: false, packages: ['rxjs'] },
  guests: { ours: ['protocols'], node: true, packages: [] },
  services: { ours: ['emulator', 'protocols'], node: true, packages: ['ws', 'msgpackr', 'protobufjs', 'rxjs'] },
  cli: { ours: ['services', 'emulator', 'protocols', 'guests'], node: true, packages: ['rxjs'] },
  library: { ours: ['services', 'emulator', 'protocols', 'guests'], node: true, packages: ['rxjs'] },
  conformance: {
    ours: ['cli', 'library', 'services', 'emulator', 'protocols', 'guests'],
    node: true,
    packages: undefined,
  },
  bench: {
    ours: ['cli', 'library', 'services', 'emulator', 'protocols', 'guests', 'scripts'],
    node: true,
    packages: undefined,
  },
  examples: { ours: ['library'], node: true, packages: ['rxjs'] },
  scripts: {
    ours: ['cli', 'library', 'services', 'emulator', 'protocols', 'guests', 'conformance'],
    node: true,
    packages: undefined,
  },
  test: {
    ours: ['cli', 'library', 'services', 'emulator', 'protocols', 'guests', 'scripts', 'examples', 'bench'],
    node: true,
    packages: undefined,
  },
};

/** Edges that the table forbids and that are right all the same */
const EXCEPTIONS: Readonly<Record<string, string>> = {
  // The supervisor opens what the user names, and the embedded firmware is one of these; the image is plain bytes.
  'services/supervisor/files.ts → guests/firmware/mod.ts': 'embedded firmware',
};

/**
 * Tools of tests, themselves no tests: the black-box tests and the benchmarks set up the same rigs, and a third
 * top folder for what only tests use would help nobody.
 */
const TEST_TOOLS = /^test\/(?:fixtures|macros)\//;
const USE_TEST_TOOLS = new Set(['conformance', 'bench']);

/** Written in AssemblyScript, or served to a browser, which has its own root */
const OTHER_LANGUAGES = /^(?:emulator\/kernel\/assembly|services\/vnc\/page)\//;

function sourceFiles(): string[] {
  return Object.keys(LAYERS)
    .filter((layer) => exists(layer))
    .flatMap((layer) => listFiles(layer))
    .filter((path) => /\.(?:ts|mts|mjs|js)$/.test(path) && !OTHER_LANGUAGES.test(path));
}

function forbidden(path: string, source: string): string[] {
  const layer = path.split('/')[0]!;
  const rules = LAYERS[layer]!;
  const found: string[] = [];
  for (const { specifier } of readImports(source)) {
    const target = resolveImport(path, specifier);
    if (specifier.startsWith('.')) {
      const other = target.split('/')[0]!;
      const tool = TEST_TOOLS.test(target) && USE_TEST_TOOLS.has(layer);
      const allowed = other === layer || rules.ours.includes(other) || tool;
      if (!allowed && EXCEPTIONS[`${path} → ${target}`] === undefined) found.push(`${path} imports ${target}`);
    } else if (specifier.startsWith('node:')) {
      if (!rules.node) found.push(`${path} imports ${specifier}`);
    } else {
      const name = specifier.split('/', specifier.startsWith('@') ? 2 : 1).join('/');
      // protobufjs writes the static modules of `protocols/**/generated`, which import its small run time.
      if (rules.packages?.includes(name) === false) found.push(`${path} imports the package ${specifier}`);
    }
  }
  return found;
}

test('no import goes against the layers', (t) => {
  t.deepEqual(
    sourceFiles().flatMap((path) => forbidden(path, readText(path))),
    [],
  );
});

test('the layers are the folders: none is missing from the table, and each is checked', (t) => {
  const paths = sourceFiles();
  t.true(paths.length > 100, `only ${paths.length} files were found`);
  for (const layer of ['protocols', 'emulator', 'services', 'guests', 'test'])
    t.true(paths.some((path) => path.startsWith(`${layer}/`)));
});

test('forbidden() names each kind of edge that goes against the layers', (t) => {
  const cases: [string, string, boolean][] = [
    ['protocols/a/b.ts', `import { x } from '../../emulator/x.ts';`, true],
    ['protocols/a/b.ts', `import type { Duplex } from 'node:stream';`, true],
    ['protocols/a/b.ts', `import { x } from '../bytes/mod.ts';`, false],
    ['emulator/a.ts', `import {\n  x,\n  y,\n} from '../services/nbd/mod.ts';`, true],
    ['emulator/a.ts', `export * from '../cli/run.ts';`, true],
    ['emulator/a.ts', `import { Subject } from 'rxjs';`, false],
    ['emulator/a.ts', `import ws from 'ws';`, true],
    ['services/a.ts', `const x = await import('../cli/main.ts');`, true],
    ['services/a.ts', `import '../test/macros/codec.ts';`, true],
    ['services/a.ts', `import { firmwareElf } from '../guests/firmware/mod.ts';`, true],
    ['cli/a.ts', `import { prepareDebian } from '../guests/debian/mod.ts';`, false],
    ['conformance/a.ts', `import { x } from '../test/fixtures/x.ts';`, false],
    ['conformance/a.ts', `import { x } from '../test/cli/x.test.ts';`, true],
    ['services/a.ts', `import { x } from '../test/fixtures/x.ts';`, true],
    ['emulator/a.ts', `import { x } from '../library/mod.ts';`, true],
    ['examples/a.ts', `import { x } from '../services/nbd/mod.ts';`, true],
    ['protocols/a.ts', `// import { x } from '../cli/x.ts';`, false],
    ['protocols/a.ts', `/** import { x } from '../cli/x.ts'; */`, false],
  ];
  for (const [path, source, wrong] of cases) t.is(forbidden(path, source).length > 0, wrong, source);
});

/** One cycle of the graph as a path, or undefined */
function findCycle(graph: ReadonlyMap<string, readonly string[]>): string[] | undefined {
  const finished = new Set<string>();
  const path: string[] = [];
  const visit = (node: string): string[] | undefined => {
    if (finished.has(node)) return undefined;
    const at = path.indexOf(node);
    if (at >= 0) return [...path.slice(at), node];
    path.push(node);
    for (const next of graph.get(node) ?? []) {
      const cycle = visit(next);
      if (cycle !== undefined) return cycle;
    }
    path.pop();
    finished.add(node);
    return undefined;
  };
  for (const node of graph.keys()) {
    const cycle = visit(node);
    if (cycle !== undefined) return cycle;
  }
  return undefined;
}

test('no file imports itself through others when it runs', (t) => {
  const graph = new Map<string, string[]>();
  for (const path of sourceFiles()) {
    const targets = readImports(readText(path)).filter((item) => !item.typeOnly && item.specifier.startsWith('.'));
    graph.set(
      path,
      targets.map(({ specifier }) => resolveImport(path, specifier)),
    );
  }
  t.is(findCycle(graph)?.join(' → '), undefined);
});

test('findCycle() finds one, and none where there is none', (t) => {
  const graph = (edges: Record<string, string[]>) => new Map(Object.entries(edges));
  t.deepEqual(findCycle(graph({ a: ['b'], b: ['c'], c: ['b'] })), ['b', 'c', 'b']);
  t.deepEqual(findCycle(graph({ a: ['a'] })), ['a', 'a']);
  t.is(findCycle(graph({ a: ['b', 'c'], b: ['c'], c: [] })), undefined);
});

test('relative imports name a file that exists, with its extension', (t) => {
  const paths = sourceFiles().filter((path) => !path.startsWith('test/house/')); // which quotes wrong imports
  const missing = paths.flatMap((path) =>
    readImports(readText(path))
      .filter(({ specifier }) => specifier.startsWith('.'))
      .map(({ specifier }) => ({ specifier, target: resolveImport(path, specifier) }))
      .filter(({ target }) => !exists(target) || !/\.[a-z]+$/.test(target))
      .map(({ specifier }) => `${path} imports ${specifier}`),
  );
  t.deepEqual(missing, []);
});
