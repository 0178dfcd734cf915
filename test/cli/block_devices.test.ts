import { resolve } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { parseVmArguments } from '../../cli/options.ts';
import { UsageError } from '../../cli/usage_error.ts';
import { checkVmOptions, VmOptionsError } from '../../services/supervisor/mod.ts';

const parse = (...words: string[]) => parseVmArguments(words).options;

function refuses(t: ExecutionContext, words: string[], text: RegExp): void {
  t.regex(t.throws(() => parse(...words), { instanceOf: UsageError })?.message ?? '', text);
}

test('-drive file=nbd://… is a disk of another host, with the delays in seconds', (t) => {
  const uri = 'nbd://host.example:1234/disk';
  const { disks } = parse('-drive', `file=${uri},format=raw,file.reconnect-delay=10,open-timeout=5,connections=4`);
  t.deepEqual(disks, [
    {
      id: 'virtio0',
      file: uri,
      nbd: { uri, reconnectDelayMs: 10_000, openTimeoutMs: 5_000, connections: 4 },
      format: 'raw',
      readOnly: false,
      snapshot: false,
      bus: 'virtio-pci',
    },
  ]);
  t.is(parse('-drive', `file=${uri},format=raw`).disks[0]?.nbd?.reconnectDelayMs, 60_000);
  t.notThrows(() => checkVmOptions(parse('-kernel', 'k', '-drive', `file=${uri},format=raw`)));
});

test('C10: a disk takes every URI that can be reached, and refuses the others by name', (t) => {
  for (const uri of [
    'nbd://h',
    'nbds://h/x',
    'nbd+unix:///x?socket=/run/s',
    'nbds+unix://alice@/x?socket=s&tls-psk-file=k',
  ]) {
    t.is(parse('-drive', `file=${uri},format=raw`).disks[0]?.nbd?.uri, uri);
  }
  refuses(t, ['-drive', 'file=nbd+vsock://2:10809/x,format=raw'], /Node has no vsock sockets/);
  refuses(t, ['-drive', 'file=nbd+unix:///x,format=raw'], /socket=PATH is missing/);
  refuses(t, ['-drive', 'file=nbd:localhost:1234,format=raw'], /Cannot read NBD URI/);
  refuses(t, ['-drive', 'file=nbd://h:99999,format=raw'], /port 99999/);
  refuses(t, ['-drive', 'file=nbd://h,format=raw,reconnect-delay=soon'], /reconnect-delay=soon/);
  refuses(t, ['-drive', 'file=nbd://h'], /format= is missing/);
});

test('-blockdev driver=nbd is a disk for a -device, in words and in JSON', (t) => {
  const words =
    'driver=nbd,node-name=d,server.type=inet,server.host=::1,server.port=10810,export=a b,reconnect-delay=3';
  const json = JSON.stringify({
    driver: 'nbd',
    'node-name': 'd',
    server: { type: 'inet', host: '::1', port: '10810' },
    export: 'a b',
    'reconnect-delay': 3,
    'read-only': false,
  });
  for (const value of [words, json]) {
    const { disks } = parse('-blockdev', value, '-device', 'virtio-blk-device,drive=d');
    t.like(disks[0], { id: 'd', bus: 'virtio-mmio', readOnly: false });
    t.deepEqual(disks[0]?.nbd, { uri: 'nbd://[::1]:10810/a%20b', reconnectDelayMs: 3_000 });
  }
  const unix = 'driver=nbd,node-name=u,server.type=unix,server.path=/run/a,,b,read-only=on';
  const [disk] = parse('-blockdev', unix, '-device', 'virtio-blk-pci,drive=u').disks;
  t.true(disk?.readOnly);
  t.is(disk?.nbd?.uri, 'nbd+unix:///?socket=/run/a%2Cb');
});

test('-blockdev driver=raw lies over a file or an export', (t) => {
  const { disks } = parse(
    ...['-blockdev', 'driver=file,node-name=f,filename=disk.raw'],
    ...['-blockdev', 'driver=raw,node-name=r,file=f,read-only=on'],
    ...['-device', 'virtio-blk-pci,drive=r'],
  );
  t.is(disks.length, 1);
  t.like(disks[0], { id: 'r', file: resolve('disk.raw'), readOnly: true });
  t.is(disks[0]?.nbd, undefined);
});

test('-blockdev refuses what it does not know, and a node that nobody uses', (t) => {
  const device = ['-device', 'virtio-blk-pci,drive=d'];
  refuses(t, ['-blockdev', 'driver=nbd,node-name=d,server.type=vsock'], /no vsock sockets/);
  refuses(t, ['-blockdev', 'driver=nbd,node-name=d,server.type=fd'], /expected inet or unix/);
  refuses(t, ['-blockdev', 'driver=nbd,node-name=d', ...device], /server\.type= is missing/);
  refuses(t, ['-blockdev', 'driver=nbd,server.type=unix,server.path=p', ...device], /node-name= is missing/);
  refuses(t, ['-blockdev', 'driver=qcow3,node-name=d,file=x', ...device], /driver=qcow3: expected raw or qcow2/);
  refuses(t, ['-blockdev', 'driver=raw,node-name=d,file=x', ...device], /names no node/);
  refuses(t, ['-blockdev', '{"driver":', ...device], /Cannot read -blockdev/);
  const node = 'driver=file,node-name=d,filename=x';
  refuses(t, ['-blockdev', node], /no -device has drive=d/);
  refuses(t, ['-blockdev', node, '-blockdev', node, ...device], /node-name d comes twice/);
  refuses(t, ['-blockdev', `${node},reedonly=on`, ...device], /reedonly=: unknown/);
});

test('-object tls-creds-* gives an NBD disk its credentials', (t) => {
  const object = 'tls-creds-psk,id=t,dir=keys,endpoint=client,username=alice';
  const drive = 'file=nbd://h/x,format=raw,tls-creds=t,tls-hostname=real.example';
  const expected = { credentials: resolve('keys'), user: 'alice', hostname: 'real.example' };
  for (const words of [
    ['-object', object, '-drive', drive],
    ['-drive', drive, '-object', object],
  ]) {
    t.deepEqual(parse(...words).disks[0]?.nbd?.tls, expected);
  }
  refuses(t, ['-drive', drive], /no -object has this id/);
  refuses(t, ['-drive', 'file=nbd://h,format=raw,tls-hostname=x'], /it needs tls-creds=/);
  refuses(t, ['-object', 'tls-creds-x509,id=t,dir=d,endpoint=server'], /expected endpoint=client/);
  refuses(t, ['-object', 'tls-creds-x509,id=t,dir=d,endpoint=client,verify-peer=off'], /verify-peer=off/);
  refuses(t, ['-object', 'secret,id=t'], /secret t: expected one of file= and data=/);
  refuses(t, ['-object', 'iothread,id=t'], /qom-type=iothread/);
});

test('options as JSON are checked, too: URI, vsock and snapshot', (t) => {
  const disk = { id: 'd', file: 'x', format: 'raw', readOnly: false, snapshot: false, bus: 'virtio-pci' } as const;
  const check = (changes: object): void =>
    checkVmOptions({ ...parse('-kernel', 'k'), disks: [{ ...disk, ...changes }] });
  t.notThrows(() => check({ nbd: { uri: 'nbd://h' } }));
  for (const changes of [
    { nbd: { uri: 'http://h' } },
    { nbd: { uri: 'nbd+vsock://2/' } },
    { nbd: { uri: 'nbd://h' }, snapshot: true },
  ]) {
    t.throws(() => check(changes), { instanceOf: VmOptionsError });
  }
});
