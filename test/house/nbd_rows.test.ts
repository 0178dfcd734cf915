import test from 'ava';
import { listFiles, readText } from './source_files.ts';

// The acceptance list of NBD and images: each row has a test that carries its id, or the row's words, in its name. So a
// row that loses its test is seen, and whoever asks what H9 means finds it by searching.

/** Handshake and transmission of the server, the client, and qcow2 images */
const ROWS = [...ids('H', 15), ...ids('T', 20), ...ids('C', 10), ...ids('Q', 18)];

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
  // Images
  ...['CVE-2014-0142', 'CVE-2014-0143', 'CVE-2014-0144', 'CVE-2014-0145', 'CVE-2014-0146', 'CVE-2014-0147'],
  ...['CVE-2014-0148', 'CVE-2014-0222', 'CVE-2014-0223', 'CVE-2015-5162', 'CVE-2015-5163', 'CVE-2022-47951'],
  ...['CVE-2024-4467', 'CVE-2024-32498', 'CVE-2026-24708'],
];

/** Messages that a server must bear, as tests of the server and probes of all servers call them */
const BAD_MESSAGES = [
  'unknown client flag',
  'bad option magic',
  'option length 2^32-1',
  'option length 64 MiB+1',
  'LIST with data',
  'GO name length > option',
  'GO name 4097',
  'name with 0xff',
  'name with NUL',
  'trailing bytes after info list',
  '65 535 info requests, none sent',
  'SET_META before structured',
  'SET_META with 2^32-1 queries',
  'STRUCTURED_REPLY twice',
  '200 unknown options',
  'silent after connect',
  'zero-length read',
  'read past end',
  'wrapping offset',
  'read > 32 MiB',
  'write length 2^32-1',
  'write past end',
  'unknown command',
  'unknown flag',
  'DF without structured',
  'BLOCK_STATUS without context',
  'FLUSH with offset/length set',
  'FAST_ZERO although not advertised',
  'bad request magic',
  'client killed with requests in flight',
  // What is no single message
  'leaves at any byte',
  'in any two pieces, or byte by byte',
  'duplicate cookies',
  '10 000 requests before a reply is read',
  'a reader that takes little at a time',
  'a write that is announced and never comes',
  'WRITE_ZEROES 2^32-1 on 1 MiB',
  'WRITE_ZEROES 2^32-1 on an export of 2^53-512 bytes',
  'TRIM across the end',
  'BLOCK_STATUS across the end',
  'REQ_ONE with length 0',
  'PAYLOAD_LEN has to be there for WRITE, and for nothing that knows no payload',
  'a megabyte of ids',
  'lengths of 64 bits do not wrap',
  'as plain text behind STARTTLS',
  'DISC followed by garbage',
  'on one path, one wins',
  '10 000 connections',
  'an export that is taken away while in use',
  'a file that is truncated while it is served',
];

/** Images that nobody may trust, by the file that has their tests */
const BAD_IMAGES: Readonly<Record<string, readonly string[]>> = {
  'test/services/nbd/qcow2': [
    ...['header_length 0', 'header_length 71', 'header_length 73', 'header_length not x8'],
    ...['header_length above a cluster', 'cluster_bits 0', 'cluster_bits 8', 'cluster_bits 22', 'cluster_bits 63'],
    ...['refcount_order 7', 'refcount_order 2^32-1', 'l1_size 0 with a size', 'l1_size 2^31', 'L1 table unaligned'],
    ...['L1 table past the end', 'L1 table at 2^63', 'refcount_table_clusters 0', 'refcount_table_clusters 2^31'],
    ...['refcount table at 0', 'refcount table unaligned', 'a snapshot table over the L1 table', '65 537 snapshots'],
    ...['id longer than the file', 'name longer than the file', 'extra data of 1025 bytes'],
    ...['backing name of 1024 bytes', 'backing name outside cluster 0', 'self.qcow2', 'json:', 'nbd://', '/etc/'],
    ...['../', 'no data file is opened', 'extension of 2^32-1 bytes', 'extensions without an end marker'],
    ...['extension twice', 'a feature name that is not terminated', 'a bitmap directory past the end'],
    ...['a bitmap table with reserved bits', 'a pointer to a LUKS header past the end', 'L1 entry to the middle'],
    ...['L1 entry to the L1 table', 'L2 entry to the L1 table', 'L2 entry to its own table'],
    ...['L2 entry to a refcount block', 'L2 entry unaligned', 'L2 entry with reserved bits', 'L1 entry past 2^55'],
    ...['two places of the disk in one cluster', 'compressed entry longer than the file'],
    ...['inflates to more than a cluster', 'compressed data that is not deflate', 'a zstd frame that asks for a huge'],
    ...['at an address above it', 'extended entries that contradict themselves', 'refcount 0 for metadata'],
    ...['a refcount that would overflow its one bit', 'both dirty and corrupt', 'does not look at the fields'],
    ...['size 2^63-1', 'size of 1000 bytes', 'a file of one byte and one of nothing', 'a FIFO, a directory'],
    'a file that shrinks while open',
  ],
  'test/protocols/qcow2': ['a bitmap of granularity 64', 'a bitmap whose name has a NUL'],
  'test/services/nbd/backing_policy.test.ts': ['cycles of three', 'an image that is under itself'],
  'test/protocols/luks': [
    'key material past the end',
    'iterations 2^32-1',
    'stripes 2^32-1',
    'key material over another slot',
  ],
  'test/protocols/vmdk': ['a NUL in its text', '2 MiB of text', 'a descriptor of 2 MiB', 'a negative size'],
  'test/services/nbd/vmdk': ['a grain table past the end', 'names another footer', 'an extent is not opened'],
  'test/services/nbd/vhd': ['checksum of the footer wrong', 'entries x block size beyond 2^53', 'footer only'],
  'test/services/nbd/vhdx': ['runs in a loop', 'a change behind the end', 'metadata region over the log'],
  'test/protocols/vhdx': ['two regions that overlap', 'the same GUID twice', 'an item twice', 'a huge block size'],
};

function ids(letter: string, count: number): string[] {
  return Array.from({ length: count }, (_, index) => `${letter}${index + 1}`);
}

/** The tests of NBD, without comments: an id that only a comment has proves nothing. */
function testSource(): string {
  return ['test/protocols/nbd', 'test/services/nbd', 'test/cli/verbs', 'conformance/nbd', 'conformance/qcow2']
    .flatMap((folder) => listFiles(folder))
    .filter((path) => path.endsWith('.test.ts'))
    .map((path) => readText(path).replace(/^\s*(?:\/\/|\*|\/\*).*$/gm, ''))
    .join('\n');
}

/** Ids at the front of a test's name, or of a row that a table of tests is made from. */
function idsInNames(source: string): Set<string> {
  const found = new Set<string>();
  for (const [, name] of source.matchAll(/['"`]([^'"`\n]*\b(?:[HTCQ][0-9]{1,2}|CVE-[0-9]{4}-[0-9]+)\b[^'"`\n]*)/g)) {
    for (const [id] of name!.matchAll(/\b(?:[HTCQ][0-9]{1,2}|CVE-[0-9]{4}-[0-9]+)\b/g)) found.add(id);
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

/** All that stands in quotes in the tests below `folder`, without comments. */
function literals(folder: string): string[] {
  const files = folder.endsWith('.ts') ? [folder] : listFiles(folder).filter((path) => path.endsWith('.test.ts'));
  return files.flatMap((path) => {
    const source = readText(path).replace(/^\s*(?:\/\/|\*|\/\*).*$/gm, '');
    return [...source.matchAll(/(['"`])((?:(?!\1)[^\n])*)\1/g)].map((match) => match[2]!);
  });
}

test('every bad message has a test that calls it by its name', (t) => {
  const found = [...literals('test/services/nbd'), ...literals('test/protocols/nbd')];
  t.deepEqual(
    BAD_MESSAGES.filter((name) => !found.some((text) => text.includes(name))),
    [],
  );
});

test('every bad image has a test that calls it by its name', (t) => {
  for (const [folder, names] of Object.entries(BAD_IMAGES)) {
    const found = literals(folder);
    t.deepEqual(
      names.filter((name) => !found.some((text) => text.includes(name))),
      [],
      folder,
    );
  }
});

test('idsInNames() finds ids in names and tables, and none in comments or longer words', (t) => {
  const source = "test('H1, T20: x', …);\n['C4: y', CVE];\ntest(`CVE-2017-2630: z`)\nconst UTC8 = 'NBD';";
  t.deepEqual([...idsInNames(source)].sort(), ['C4', 'CVE-2017-2630', 'H1', 'T20']);
});
