import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import { DirtyBitmap, ExportSet, MemoryImage, NbdListener } from '../../../services/nbd/mod.ts';
import { readTlsCredentials, TlsServer } from '../../../services/shared/mod.ts';
import { type ImgResult, runImg } from '../../fixtures/img_verb.ts';

const directory = mkdtempSync(join(tmpdir(), 'caisson-img-nbd-'));
test.after.always(() => rmSync(directory, { recursive: true, force: true }));
const at = (name: string): string => join(directory, name);
const img = (...args: string[]): Promise<ImgResult> => runImg(directory, ...args);
const PAGE = 65_536;

const disk = new MemoryImage(16 * PAGE);
const target = new MemoryImage(16 * PAGE);
let listener: NbdListener;
let uri: string;
test.before(async () => {
  const bitmap = new DirtyBitmap(disk.sizeBytes, PAGE);
  disk.bitmaps.add('b', bitmap);
  await disk.write(2 * PAGE, new Uint8Array(PAGE).fill(5));
  const exports = new ExportSet();
  exports.add({ name: 'disk', image: disk, writable: false, bitmaps: ['b'] });
  exports.add({ name: 'target', image: target, writable: true });
  listener = await NbdListener.listen({ type: 'unix', path: at('s') }, exports);
  uri = listener.uriOf('disk');
});
test.after.always(() => listener?.close());

test.serial('Q17 info, map and measure of an export tell what the server says', async (t) => {
  const { out } = await img('info', '-f', 'raw', '--output=json', uri);
  t.deepEqual(JSON.parse(out), {
    'virtual-size': 16 * PAGE,
    filename: uri.replaceAll(directory, 'DIR'),
    format: 'raw',
    'dirty-flag': false,
  });
  t.regex((await img('--qemu-img', 'info', uri)).out, /virtual size: 1 MiB \(1048576 bytes\)\ndisk size: unavailable/);
  const map = await img('map', '-f', 'raw', '--output=json', uri);
  t.deepEqual(
    (JSON.parse(map.out) as { start: number; length: number; data: boolean }[]).map((run) => [
      run.start,
      run.length,
      run.data,
    ]),
    [
      [0, 2 * PAGE, false],
      [2 * PAGE, PAGE, true],
      [3 * PAGE, 13 * PAGE, false],
    ],
  );
  const measured = await img('measure', '-f', 'raw', '-O', 'qcow2', '--output=json', uri);
  t.is((JSON.parse(measured.out) as { required: number }).required, 6 * PAGE);
});

test.serial('Q17 convert reads an export, and with -n writes to one; compare finds them the same', async (t) => {
  const done = async (...args: string[]): Promise<void> => {
    const { status, said } = await img(...args);
    t.is(status, 0, said);
  };
  await done('convert', '-f', 'raw', '-O', 'qcow2', uri, at('copy.qcow2'));
  await done('compare', '-f', 'raw', '-F', 'qcow2', uri, at('copy.qcow2'));
  const to = listener.uriOf('target');
  t.regex(
    (await img('convert', '-f', 'qcow2', '-O', 'raw', at('copy.qcow2'), to)).said,
    /cannot be made, .*convert -n/,
  );
  t.regex((await img('dd', '-f', 'qcow2', `if=${at('copy.qcow2')}`, `of=${to}`)).said, /cannot be made, .*convert -n/);
  await done('convert', '-n', '-f', 'qcow2', '-O', 'raw', at('copy.qcow2'), to);
  await done('compare', '-f', 'raw', uri, to);
  t.regex((await img('convert', '-n', '-f', 'raw', '-O', 'raw', to, uri)).said, /exports it read-only/);
  await done('dd', '-f', 'raw', `if=${uri}`, `of=${at('part.raw')}`, `bs=${PAGE}`, 'skip=2', 'count=1');
  t.true(readFileSync(at('part.raw')).every((byte) => byte === 5));
});

test.serial('Q17 an export is named by QEMU’s words, too, with the context that is to be shown', async (t) => {
  const words = `driver=nbd,server.type=unix,server.path=${at('s')},export=disk`;
  t.is((await img('info', '--image-opts', words)).status, 0);
  const json = JSON.stringify({
    driver: 'raw',
    file: { driver: 'nbd', server: { type: 'unix', path: at('s') }, export: 'disk' },
  });
  t.is((await img('--qemu-img', 'info', `json:${json}`)).status, 0);
  t.is((await img('--qemu-img', 'info', `nbd:unix:${at('s')}:exportname=disk`)).status, 0);
  const map = await img('map', '--output=json', '--image-opts', `${words},x-dirty-bitmap=qemu:dirty-bitmap:b`);
  // Dirty is the bit that says "hole" elsewhere: QEMU shows it so.
  t.deepEqual(
    (JSON.parse(map.out) as { start: number; data: boolean }[]).map((run) => [run.start, run.data]),
    [
      [0, true],
      [2 * PAGE, false],
      [3 * PAGE, true],
    ],
  );
  t.regex((await img('info', '--image-opts', `${words},x-dirty-bitmap=qemu:dirty-bitmap:c`)).said, /does not have it/);
  t.regex((await img('info', '--image-opts', `${words},foo=bar`)).said, /foo=: unknown/);
  t.regex((await img('info', '-f', 'qcow2', uri)).said, /which is a raw disk/);
});

test.serial('Q10 an export that an image names stays closed, also as qemu-img', async (t) => {
  await img('create', '-f', 'qcow2', '-u', '-b', uri, '-F', 'raw', at('over.qcow2'), '1M');
  t.regex((await img('--qemu-img', 'map', at('over.qcow2'))).said, /names a protocol/);
});

test.serial('C2 nbds:// reads the keys that it names, and goes nowhere without TLS', async (t) => {
  writeFileSync(at('keys.psk'), `alice:${'5a'.repeat(32)}\n`);
  const exports = new ExportSet();
  exports.add({ name: 'disk', image: disk, writable: false });
  const server = new TlsServer(readTlsCredentials(at('keys.psk'), 'server'));
  const secure = await NbdListener.listen({ type: 'unix', path: at('t') }, exports, {
    tls: { server, mode: 'require' },
  });
  try {
    const named = `nbds+unix://alice@/disk?socket=${at('t')}&tls-psk-file=${at('keys.psk')}`;
    t.is((await img('info', '-f', 'raw', named)).status, 0);
    t.is((await img('compare', '-f', 'raw', named, uri)).status, 0);
    t.regex((await img('info', '-f', 'raw', secure.uriOf('disk').replace('nbds', 'nbd'))).said, /TLS/);
    const object = `tls-creds-psk,id=t,dir=${directory},endpoint=client,username=alice`;
    const words = `driver=nbd,server.type=unix,server.path=${at('t')},export=disk,tls-creds=t`;
    t.is((await img('info', '--object', object, '--image-opts', words)).status, 0);
  } finally {
    await secure.close();
  }
});
