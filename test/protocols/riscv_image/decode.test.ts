import test from 'ava';
import { WireError } from '../../../protocols/bytes/mod.ts';
import { decodeRiscvImage as decodeHead, isRiscvImage } from '../../../protocols/riscv_image/mod.ts';
import { refusesEveryTruncation, survivesEveryByteChange } from '../../macros/codec.ts';
import { sampleImage } from '../../macros/programs.ts';

function changed(write: (view: DataView) => void): Uint8Array {
  const file = sampleImage();
  write(new DataView(file.buffer));
  return file;
}

const decodeRiscvImage = (file: Uint8Array) => decodeHead(file, file.length);

test('decodeRiscvImage() reads a true header', (t) => {
  t.deepEqual(decodeRiscvImage(sampleImage(4096, 10_000)), {
    textOffset: 0x20_0000,
    imageBytes: 10_000,
    versionMajor: 0,
    versionMinor: 2,
  });
  t.true(isRiscvImage(sampleImage()));
  t.false(isRiscvImage(new Uint8Array(64)));
  t.false(isRiscvImage(new Uint8Array(3)));
});

test('decodeRiscvImage() refuses a header that is cut off', (t) => {
  refusesEveryTruncation(t, sampleImage(64), decodeRiscvImage);
});

test('decodeRiscvImage() survives every byte change', (t) => {
  survivesEveryByteChange(t, sampleImage(64), decodeRiscvImage);
});

test('decodeRiscvImage() refuses headers that lie', (t) => {
  const cases: [string, (view: DataView) => void][] = [
    ['no magic', (view) => view.setUint32(56, 0, true)],
    ['image_size below the file', (view) => view.setBigUint64(16, 4095n, true)],
    ['image_size zero', (view) => view.setBigUint64(16, 0n, true)],
    ['image_size beyond 4 GiB', (view) => view.setBigUint64(16, (1n << 64n) - 1n, true)],
    ['text_offset no page', (view) => view.setBigUint64(8, 0x20_0001n, true)],
    ['text_offset beyond 4 GiB', (view) => view.setBigUint64(8, 1n << 63n, true)],
    ['big-endian kernel', (view) => view.setBigUint64(24, 1n, true)],
    ['unknown major version', (view) => view.setUint32(32, 0x1_0000, true)],
  ];
  for (const [name, write] of cases) t.throws(() => decodeRiscvImage(changed(write)), { instanceOf: WireError }, name);
});
