import test from 'ava';
import { moduleName, readModuleInfo, resolveModules, withoutSignature } from '../../../guests/debian/mod.ts';

/** The smallest ELF64 file with a section `.modinfo` */
function moduleFile(info: string): Uint8Array {
  const names = Buffer.from('\0.modinfo\0.shstrtab\0');
  const data = Buffer.from(info);
  const file = Buffer.alloc(64 + data.length + names.length + 3 * 64);
  file.writeUInt32BE(0x7f454c46, 0);
  file[4] = 2;
  const table = 64 + data.length + names.length;
  file.writeBigUInt64LE(BigInt(table), 40);
  file.writeUInt16LE(3, 60);
  file.writeUInt16LE(2, 62);
  data.copy(file, 64);
  names.copy(file, 64 + data.length);
  const section = (index: number, name: number, type: number, offset: number, size: number) => {
    file.writeUInt32LE(name, table + index * 64);
    file.writeUInt32LE(type, table + index * 64 + 4);
    file.writeBigUInt64LE(BigInt(offset), table + index * 64 + 24);
    file.writeBigUInt64LE(BigInt(size), table + index * 64 + 32);
  };
  section(1, 1, 1, 64, data.length);
  section(2, 10, 3, 64 + data.length, names.length);
  return new Uint8Array(file);
}

test('readModuleInfo() gives each key of .modinfo', (t) => {
  const info = readModuleInfo(moduleFile('license=GPL\0depends=jbd2,mbcache\0alias=a\0alias=b\0'));
  t.deepEqual(info.get('depends'), ['jbd2,mbcache']);
  t.deepEqual(info.get('alias'), ['a', 'b']);
});

test('readModuleInfo() refuses other files and section tables that point outside', (t) => {
  t.throws(() => readModuleInfo(new Uint8Array(100)), { message: /not an ELF64/ });
  const module = moduleFile('depends=\0');
  new DataView(module.buffer).setBigUint64(40, 1n << 60n, true);
  t.throws(() => readModuleInfo(module), { message: /outside the file/ });
});

test('readModuleInfo() answers every truncation and every changed byte with a result or an error', (t) => {
  const module = moduleFile('depends=jbd2\0');
  const probe = (bytes: Uint8Array) => {
    try {
      readModuleInfo(bytes);
    } catch (error) {
      t.true(error instanceof Error);
    }
  };
  for (let length = 0; length < module.length; length++) probe(module.slice(0, length));
  for (let at = 0; at < module.length; at++) probe(module.map((byte, index) => (index === at ? byte ^ 0xff : byte)));
});

test('moduleName() is what the kernel calls it', (t) => {
  t.is(moduleName('lib/modules/7/kernel/drivers/gpu/drm/virtio/virtio-gpu.ko.xz'), 'virtio_gpu');
  t.is(moduleName('ext4.ko'), 'ext4');
});

test('resolveModules() orders by need, once each, soft needs too; what is not there is named', async (t) => {
  const files: Record<string, string> = {
    ext4: 'depends=jbd2,mbcache\0softdep=pre: crc32c-generic post: other\0',
    jbd2: 'depends=\0',
    mbcache: 'depends=\0',
    crc32c_generic: 'depends=ext4\0', // a cycle must end
    virtio_blk: 'depends=jbd2\0',
  };
  const fetch = async (name: string) => (files[name] === undefined ? undefined : moduleFile(files[name]));
  const { modules, absent } = await resolveModules(['ext4', 'virtio_blk', 'virtio_pci'], fetch);
  t.deepEqual(
    modules.map(({ name, level }) => `${name} ${level}`),
    ['jbd2 0', 'mbcache 0', 'crc32c_generic 0', 'ext4 1', 'virtio_blk 1'],
  );
  t.deepEqual(absent, ['virtio_pci']);
});

test('withoutSignature() cuts an appended signature off, and nothing else', (t) => {
  const signed = (length: number) =>
    Buffer.concat([
      Buffer.from('module'),
      Buffer.alloc(300, 0xaa),
      Buffer.from([0, 0, 2, 0, 0, 0, 0, 0, 0, 0, length >> 8, length & 0xff]),
      Buffer.from('~Module signature appended~\n'),
    ]);
  t.is(Buffer.from(withoutSignature(signed(300))).toString(), 'module');
  t.is(withoutSignature(signed(307)).length, signed(0).length, 'a length before the start is not followed');
  const plain = new Uint8Array(100);
  t.is(withoutSignature(plain), plain);
  t.is(withoutSignature(plain.subarray(0, 5)).length, 5);
});
