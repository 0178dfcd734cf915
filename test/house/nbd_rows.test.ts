import test from 'ava';
import { listFiles, readText } from './source_files.ts';

// The acceptance list of NBD: each row has a test that carries its id in its name. So a row that loses its test is
// seen, and whoever asks what H9 means finds it by searching.

/** Handshake and transmission of the server, and the client */
const ROWS = [...ids('H', 15), ...ids('T', 20), ...ids('C', 10)];

/** What went wrong in other people's programs, by what they are known as; each is tried here */
const PAST_BUGS = [
  'CVE-2013-7441',
  'CVE-2017-2630',
  'CVE-2017-7539',
  'CVE-2017-9524',
  'CVE-2017-10664',
  'CVE-2017-15118',
  'CVE-2017-15119',
  'CVE-2019-14842',
  'CVE-2019-14850',
  'CVE-2019-14851',
  'CVE-2020-10761',
  'CVE-2021-3716',
  'CVE-2021-20286',
  'CVE-2022-0485',
  'CVE-2022-26495',
  'CVE-2022-26496',
  'CVE-2023-5215',
  'CVE-2023-5871',
  'CVE-2024-7383',
  'CVE-2024-7409',
  'CVE-2025-47711',
  'CVE-2025-47712',
];

function ids(letter: string, count: number): string[] {
  return Array.from({ length: count }, (_, index) => `${letter}${index + 1}`);
}

/** The tests of NBD, without comments: an id that only a comment has proves nothing. */
function testSource(): string {
  return ['test/protocols/nbd', 'test/services/nbd', 'test/cli/verbs', 'conformance/nbd']
    .flatMap((folder) => listFiles(folder))
    .filter((path) => path.endsWith('.test.ts'))
    .map((path) => readText(path).replace(/^\s*(?:\/\/|\*|\/\*).*$/gm, ''))
    .join('\n');
}

/** Ids at the front of a test's name, or of a row that a table of tests is made from. */
function idsInNames(source: string): Set<string> {
  const found = new Set<string>();
  for (const [, name] of source.matchAll(/['"`]([^'"`\n]*\b(?:[HTC][0-9]{1,2}|CVE-[0-9]{4}-[0-9]+)\b[^'"`\n]*)/g)) {
    for (const [id] of name!.matchAll(/\b(?:[HTC][0-9]{1,2}|CVE-[0-9]{4}-[0-9]+)\b/g)) found.add(id);
  }
  return found;
}

test('every row of the NBD acceptance list has a test with its id, and so has every past bug', (t) => {
  const found = idsInNames(testSource());
  t.deepEqual(
    [...ROWS, ...PAST_BUGS].filter((id) => !found.has(id)),
    [],
  );
});

test('idsInNames() finds ids in names and tables, and none in comments or longer words', (t) => {
  const source = "test('H1, T20: x', …);\n['C4: y', CVE];\ntest(`CVE-2017-2630: z`)\nconst UTC8 = 'NBD';";
  t.deepEqual([...idsInNames(source)].sort(), ['C4', 'CVE-2017-2630', 'H1', 'T20']);
});
