import test from 'ava';
import { MemoryImage } from '../../../../services/nbd/images/mod.ts';
import { amendQcow2, createSnapshot, emptyImage, Qcow2Image } from '../../../../services/nbd/images/qcow2/mod.ts';
import { LogImageFile } from '../../../fixtures/log_image_file.ts';

const MIB = 1 << 20;
const named = (length: number, letter = 'x'): string => `/${letter.repeat(length - 5)}.raw`;

function open(file: LogImageFile): Promise<Qcow2Image> {
  return Qcow2Image.openFile(file, { readOnly: false, backing: new MemoryImage(MIB) });
}

for (const version of [2, 3] as const) {
  for (const length of [100, 376, 377, 420, 1023]) {
    test(`a header keeps its backing file's name of ${length} bytes when it is written anew, version ${version}`, async (t) => {
      const backing = { file: named(length), format: 'raw' };
      const file = new LogImageFile(emptyImage({ sizeBytes: MIB, version, backing }));
      let image = await open(file);
      await createSnapshot(image, 'first');
      await image.close();
      image = await open(file);
      t.is(image.header.backingFile, backing.file);
      await amendQcow2(image, { version: 3 });
      t.is(image.header.backingFile, backing.file);
      await image.close();
    });
  }
}

test('a header takes another name of the backing file, also where only the place of the old one is left', async (t) => {
  for (const clusterBytes of [1024, 2048, 65_536]) {
    const backing = { file: named(500), format: 'raw' };
    const file = new LogImageFile(emptyImage({ sizeBytes: 65_536, clusterBytes, backing }));
    const image = await open(file);
    for (const length of [500, 380, 20, 700]) {
      const name = { file: named(length, String.fromCharCode(0x61 + (length % 26))), format: 'raw' };
      await image.changeBacking(new MemoryImage(MIB), { name });
      t.is(image.header.backingFile, name.file, `${length} bytes in clusters of ${clusterBytes}`);
    }
    await image.close();
  }
});
