import { resolve } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { KeyValues } from '../../cli/key_value.ts';
import { ALIASES, RULES } from '../../cli/option_rules.ts';
import { parseVmArguments } from '../../cli/options.ts';
import { QEMU_OPTIONS } from '../../cli/qemu_options.ts';
import { nearest } from '../../cli/suggest.ts';
import { UsageError } from '../../cli/usage_error.ts';
import { checkVmOptions } from '../../services/supervisor/mod.ts';

const parse = (line: string) => parseVmArguments(line.split(' ').filter((word) => word !== '')).options;

function refuses(t: ExecutionContext, line: string, text: RegExp): void {
  t.regex(t.throws(() => parse(line), { instanceOf: UsageError }, line)?.message ?? '', text);
}

test('parseVmArguments() reads the words of QEMU', (t) => {
  const options = parse(
    '-M virt -m 1G -smp 2 -bios none -kernel k -initrd i -dtb d -append console=ttyS0 -name web -uuid u -S -nographic',
  );
  t.is(options.ramBytes, 2 ** 30);
  t.is(options.harts, 2);
  t.is(options.bios, 'none');
  t.deepEqual(options.kernel, { file: resolve('k') });
  t.deepEqual(options.initrd, { file: resolve('i') });
  t.deepEqual(options.dtb, { file: resolve('d') });
  t.is(options.append, 'console=ttyS0');
  t.is(options.name, 'web');
  t.true(options.paused);
  t.false(options.display);
  t.is(options.vnc, undefined);
});

test('parseVmArguments() gives defaults that make a machine, and a page for the display', (t) => {
  const { options, named } = parseVmArguments(['-kernel', 'k']);
  t.false(named);
  t.is(options.name, 'vm');
  t.is(options.ramBytes, 128 << 20);
  t.true(options.display);
  t.deepEqual(options.vnc, { host: '127.0.0.1', webPort: 0 });
  t.notThrows(() => checkVmOptions(options));
});

test('parseVmArguments() gives JSON', (t) => {
  const options = parse('-drive file=a,format=raw -vnc :1 -qmp unix:/q -incoming unix:m');
  t.deepEqual(JSON.parse(JSON.stringify(options)), options);
});

test('-m takes sizes with and without unit', (t) => {
  for (const [text, bytes] of [
    ['512', 512 << 20],
    ['64M', 64 << 20],
    ['2g', 2 ** 31],
    ['size=1G', 2 ** 30],
    ['4096k', 4 << 20],
  ] as const) {
    t.is(parse(`-m ${text}`).ramBytes, bytes, text);
  }
});
test('-m refuses what is no size', (t) => {
  for (const text of ['-1', '1T', 'x', '1.5G', '', '99999999999999G', '1G,slots=2']) {
    t.throws(() => parseVmArguments(['-m', text]), { instanceOf: UsageError }, text);
  }
});
test('-smp refuses 0 and 9', (t) => {
  refuses(t, '-smp 0', /expected a number in 1\.\.8/);
  refuses(t, '-smp 9', /expected a number in 1\.\.8/);
});

test('-drive with if=virtio is a disk, with if=none it waits for its device', (t) => {
  const { disks } = parse(
    '-drive file=a,format=raw -drive file=b,format=raw,if=none,id=x,readonly=on -device virtio-blk-device,drive=x -drive file=c,,d,format=raw,id=y,snapshot=on',
  );
  t.deepEqual(disks, [
    { id: 'virtio0', file: resolve('a'), format: 'raw', readOnly: false, snapshot: false, bus: 'virtio-pci' },
    { id: 'y', file: resolve('c,d'), format: 'raw', readOnly: false, snapshot: true, bus: 'virtio-pci' },
    { id: 'x', file: resolve('b'), format: 'raw', readOnly: true, snapshot: false, bus: 'virtio-mmio' },
  ]);
});
test('-snapshot is for all disks', (t) => {
  t.true(parse('-snapshot -drive file=a,format=raw').disks[0]?.snapshot);
});
test('-drive refuses a missing format, another format, and one that is guessed', (t) => {
  refuses(t, '-drive file=a', /format= is missing/);
  refuses(t, '-drive file=a,format=qcow3', /format=qcow3: expected raw or qcow2/);
});
test('Q10 -drive says what is under a qcow2 image, layer by layer', (t) => {
  const { disks } = parse(
    '-drive file=a,format=qcow2,backing.driver=qcow2,backing.file.filename=b,backing.backing.driver=raw,backing.backing.file.filename=c',
  );
  t.deepEqual(disks[0], {
    id: 'virtio0',
    file: resolve('a'),
    format: 'qcow2',
    backing: { file: resolve('b'), format: 'qcow2', backing: { file: resolve('c'), format: 'raw' } },
    readOnly: false,
    snapshot: false,
    bus: 'virtio-pci',
  });
  t.is(parse('-drive file=a,format=qcow2,data-file.filename=d').disks[0]?.dataFile, resolve('d'));
  t.is(parse('-drive file=a,format=qcow2,backing-root=.').disks[0]?.backingRoot, resolve('.'));
  refuses(t, '-drive file=a,format=qcow2,backing.driver=qcow2', /file= is missing/);
  refuses(t, '-drive file=a,format=qcow2,backing.driver=nbd,backing.host=h', /host=: unknown for driver nbd/);
  refuses(t, '-drive file=a,format=qcow2,backing-root=.,backing.driver=raw,backing.file.filename=b', /together/);
});
test('-drive throttling.… has QEMU’s words for rates, bursts and their lengths', (t) => {
  const words = 'throttling.iops-total=500,throttling.iops-total-max=2000,throttling.iops-total-max-length=10';
  t.deepEqual(
    parse(`-drive file=a,format=raw,${words},throttling.bps-read=1000000,throttling.iops-size=4096`).disks[0]?.throttle,
    {
      opsTotal: { average: 500, burst: 2000, burstSeconds: 10 },
      bytesRead: { average: 1_000_000 },
      opBytes: 4096,
    },
  );
  t.is(parse('-drive file=a,format=raw').disks[0]?.throttle, undefined);
  refuses(t, '-drive file=a,format=raw,throttling.iops-totel=1', /did you mean iops-total/);
  refuses(t, '-drive file=a,format=raw,throttling.bps-total=1.5', /expected a number/);
  refuses(t, '-drive file=a,format=raw,throttling.bps-total-max=5', /bps-total= is missing/);
});
test('-blockdev makes nodes, dotted or JSON, that a device or another node takes', (t) => {
  const expected = {
    id: 'd',
    file: resolve('top'),
    format: 'qcow2',
    backing: { file: resolve('base'), format: 'raw', node: 'b' },
    node: 'd',
    readOnly: true,
    snapshot: false,
    bus: 'virtio-pci',
  };
  const device = ['-device', 'virtio-blk-pci,drive=d'];
  const dotted = [
    ['-blockdev', 'file,node-name=f,filename=base'],
    ['-blockdev', 'driver=raw,node-name=b,file=f'],
    ['-blockdev', 'driver=qcow2,node-name=d,file.driver=file,file.filename=top,backing=b,read-only=on'],
  ].flat();
  t.deepEqual(parseVmArguments([...dotted, ...device]).options.disks, [expected]);
  const json = JSON.stringify({
    driver: 'qcow2',
    'node-name': 'd',
    file: { driver: 'file', filename: 'top' },
    backing: { driver: 'raw', 'node-name': 'b', file: { driver: 'file', filename: 'base' } },
    'read-only': true,
  });
  t.deepEqual(parseVmArguments(['-blockdev', json, ...device]).options.disks, [expected]);
  refuses(t, '-blockdev driver=qcow2,file.filename=a', /node-name= is missing/);
  refuses(t, '-blockdev driver=qcow2,node-name=d', /file= is missing/);
  refuses(t, '-blockdev driver=qcow2,node-name=d,file=f', /f names no node from before/);
  refuses(t, '-blockdev driver=raw,node-name=d,file.filename=a,backing.driver=raw', /nothing under them/);
  refuses(t, '-blockdev driver=raw,node-name=d,file.filename=a,cache.direct=on', /cache=: unknown/);
  refuses(t, '-blockdev {', /Cannot read -blockdev/);
});
test('-drive refuses a missing file, an unknown key, a key that comes twice, a key without value', (t) => {
  refuses(t, '-drive format=raw', /file= is missing/);
  refuses(t, '-drive file=a,format=raw,reedonly=on', /reedonly=: unknown; did you mean readonly/);
  refuses(t, '-drive file=a,file=b,format=raw', /file= comes twice/);
  refuses(t, '-drive file=a,format=raw,', /expected key=value/);
  refuses(t, '-drive file=a,format=raw,if=ide', /if=ide: expected virtio or none/);
  refuses(t, '-drive file=a,format=raw,readonly=maybe', /expected on or off/);
});
test('-device refuses a drive that is not there, twice, or of another kind', (t) => {
  refuses(t, '-device virtio-blk-pci,drive=x', /there is no -drive with if=none,id=x/);
  refuses(t, '-device virtio-blk-pcj,drive=x', /did you mean virtio-blk-pci/);
  refuses(t, '-device virtio-blk-pci', /drive= is missing/);
  refuses(t, '-drive file=a,format=raw,if=none,id=x', /no -device has drive=x/);
  refuses(t, '-drive file=a,format=raw,if=none', /id= is missing/);
});

test('-device virtconsole makes the terminal hvc0, virtio-net-pci adds a card', (t) => {
  t.true(parse('-device virtconsole').virtioConsole);
  t.true(parse('-device virtio-net-pci').network);
  t.false(parse('').network);
  refuses(t, '-device virtio-net-pcx', /unknown/);
});

test('-incoming refuses exec: and nonsense', (t) => {
  t.is(parse('-incoming defer').incoming, 'defer');
  refuses(t, '-incoming exec:cat', /expected tcp:HOST:PORT, unix:PATH or defer/);
});

test('an unknown option is named with the nearest one, never ignored', (t) => {
  refuses(t, '-kernal x', /option -kernal: unknown; did you mean -kernel/);
  refuses(t, '--append x -foobarbaz', /option -foobarbaz: unknown$/);
  refuses(t, 'image.raw', /expected an option/);
  refuses(t, '-constructor', /option -constructor: unknown/);
});
test('an option of QEMU that is not here is answered with what to do instead', (t) => {
  refuses(t, '-hda x.img', /-hda: it is QEMU’s, and not here; say -drive file=FILE,format=raw/);
  refuses(t, '--netdev user,id=n', /--netdev: .* there is no network/);
  refuses(t, '-cpu max', /one processor/);
  for (const name of Object.keys(QEMU_OPTIONS)) t.false(name in RULES || name in ALIASES, name);
});
test('an option without its value is refused', (t) => refuses(t, '-kernel', /its value is missing, expected FILE/));
test('-M refuses another machine, -serial and -display another end', (t) => {
  refuses(t, '-M sifive_u', /expected virt/);
  refuses(t, '-serial pty', /expected stdio or none/);
  refuses(t, '-display gtk', /expected none/);
});

test('checkVmOptions() refuses names that leave the registry, odd sizes, a missing kernel', (t) => {
  const base = parse('-kernel k');
  for (const name of ['../x', '', '.x', 'a/b', 'x'.repeat(65), 'a\nb']) {
    t.throws(() => checkVmOptions({ ...base, name }), { code: 'ERR_VM_OPTIONS' }, name);
  }
  t.throws(() => checkVmOptions({ ...base, ramBytes: (128 << 20) + 1 }), { message: /multiple of 2 MiB/ });
  t.throws(() => checkVmOptions({ ...base, ramBytes: 2 ** 40 }), { code: 'ERR_VM_OPTIONS' });
  t.throws(() => checkVmOptions(parse('-bios none')), { message: /expected -kernel/ });
  t.throws(() => checkVmOptions({ ...base, uuid: 'no' }), { message: /expected a UUID/ });
});

test('KeyValues reads double commas, flags and the implied key', (t) => {
  const keys = new KeyValues('-x', 'a,,b,c=d,,e,f', 'first');
  t.is(keys.take('first'), 'a,b');
  t.is(keys.take('c'), 'd,e');
  t.true(keys.flag('f', false));
  t.notThrows(() => keys.end());
  t.throws(() => new KeyValues('-x', '=a'), { instanceOf: UsageError });
});

test('nearest() finds what was meant and nothing else', (t) => {
  t.is(nearest('-krenel', ['-kernel', '-initrd']), '-kernel');
  t.is(nearest('zzzzzz', ['-kernel', '-initrd']), undefined);
  t.is(nearest('lst', ['list', 'run']), 'list');
  t.is(nearest('-d', ['-h', '-m']), undefined, 'half of the word is not a slip');
});
