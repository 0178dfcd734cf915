import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { type AddressInfo, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import test from 'ava';
import { nbdVerb } from '../../../cli/verbs/nbd.ts';

// What qemu-nbd 7.2 says of failures of the system, and what we say with --qemu-nbd.

const directory = mkdtempSync(join(tmpdir(), 'caisson-as-qemu-nbd-'));
test.after.always(() => rmSync(directory, { recursive: true, force: true }));
const at = (name: string): string => join(directory, name);
writeFileSync(at('a.raw'), new Uint8Array(1 << 20));
const socket = at('s');
const LONG = `/${'x'.repeat(108)}`;

/** In this process, one at a time: the output is the process's. */
async function said(...words: string[]): Promise<{ status: number; text: string }> {
  const { write } = process.stderr;
  let text = '';
  process.stderr.write = ((part: string) => {
    text += part;
    return true;
  }) as typeof write;
  try {
    const status = await nbdVerb.run(['--qemu-nbd', ...words]);
    return { status, text: text.replaceAll(directory, 'DIR') };
  } finally {
    process.stderr.write = write;
  }
}

for (const [what, words, expected] of [
  [
    'an image that is not there',
    ['-k', socket, '-f', 'raw', at('none')],
    "Failed to blk_new_open 'DIR/none': Could not open 'DIR/none': No such file or directory",
  ],
  [
    'one whose format is not said',
    ['-k', socket, at('none')],
    "Failed to blk_new_open 'DIR/none': Could not open 'DIR/none': No such file or directory",
  ],
  [
    'a path through a file',
    ['-k', socket, '-f', 'qcow2', at('a.raw/b')],
    "Failed to blk_new_open 'DIR/a.raw/b': Could not open 'DIR/a.raw/b': Not a directory",
  ],
  [
    'a folder',
    ['-k', socket, '-f', 'raw', directory],
    "Failed to blk_new_open 'DIR': Could not open 'DIR': Is a directory",
  ],
  [
    'a folder that is only read',
    ['-r', '-k', socket, '-f', 'raw', directory],
    "Failed to blk_new_open 'DIR': 'file' driver requires 'DIR' to be a regular file",
  ],
  [
    'an image of another format',
    ['-k', socket, '-f', 'qcow2', at('a.raw')],
    "Failed to blk_new_open 'DIR/a.raw': Image is not in qcow2 format",
  ],
  ['a bitmap that is not there', ['-k', socket, '-f', 'raw', '-B', 'b', at('a.raw')], "Bitmap 'b' is not found"],
  [
    'a socket in no folder',
    ['-k', at('no/s'), '-f', 'raw', at('a.raw')],
    'Failed to bind socket to DIR/no/s: No such file or directory',
  ],
  [
    'a socket below a file',
    ['-k', at('a.raw/s'), '-f', 'raw', at('a.raw')],
    'Failed to unlink socket DIR/a.raw/s: Not a directory',
  ],
  [
    'a socket with too long a path',
    ['-k', LONG, '-f', 'raw', at('a.raw')],
    `UNIX socket path '${LONG}' is too long\nPath must be less than 108 bytes`,
  ],
  [
    'an address of another computer',
    ['-b', '192.0.2.1', '-p', '19878', '-f', 'raw', at('a.raw')],
    'Failed to bind socket: Cannot assign requested address',
  ],
  [
    'a pid file in no folder',
    ['-k', socket, '-f', 'raw', `--pid-file=${at('no/p')}`, at('a.raw')],
    "Could not create 'DIR/no/p': No such file or directory",
  ],
  [
    'a pid file that is a folder',
    ['-k', socket, '-f', 'raw', `--pid-file=${directory}`, at('a.raw')],
    "Could not create 'DIR': Is a directory",
  ],
  [
    'a server that is not there',
    ['-L', '-k', at('none')],
    "Failed to connect to 'DIR/none': No such file or directory",
  ],
  ['a server that is a file', ['-L', '-k', at('a.raw')], "Failed to connect to 'DIR/a.raw': Connection refused"],
  [
    'a server with too long a path',
    ['-L', '-k', LONG],
    `UNIX socket path '${LONG}' is too long\nPath must be less than 108 bytes`,
  ],
] as const) {
  test.serial(`--qemu-nbd says of ${what} what qemu-nbd says`, async (t) => {
    t.deepEqual(await said(...words), { status: 1, text: `qemu-nbd: ${expected}\n` });
    t.false(existsSync(socket), 'it listens still');
  });
}

test.serial('--qemu-nbd says of a port in use what qemu-nbd says', async (t) => {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  const words = ['-b', '127.0.0.1', '-p', String(port)];
  const expected = 'qemu-nbd: Failed to find an available port: Address already in use\n';
  t.deepEqual(await said(...words, '-f', 'raw', at('a.raw')), { status: 1, text: expected });
  await new Promise((resolve) => server.close(resolve));
  const refused = `qemu-nbd: Failed to connect to '127.0.0.1:${port}': Connection refused\n`;
  t.deepEqual(await said('-L', ...words), { status: 1, text: refused });
});
