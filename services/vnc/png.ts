import { promisify } from 'node:util';
import { crc32, deflate } from 'node:zlib';
import type { Picture } from '../../protocols/rfb/mod.ts';

const SIGNATURE = Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);
const COLOUR_TYPE_RGB = 2;
/** Filter type 1: each byte minus the one of the pixel to the left (PNG §9.2) */
const FILTER_SUB = 1;

const deflateAsync = promisify(deflate);

/** A PNG file of 8-bit RGB. */
export async function encodePng(picture: Picture): Promise<Buffer> {
  const { width, height, pixels } = picture;
  const header = Buffer.alloc(13);
  header.writeUInt32BE(width, 0);
  header.writeUInt32BE(height, 4);
  header[8] = 8;
  header[9] = COLOUR_TYPE_RGB;
  const rowBytes = 1 + width * 3;
  const rows = Buffer.alloc(rowBytes * height);
  for (let y = 0; y < height; y++) {
    let at = y * rowBytes;
    rows[at++] = FILTER_SUB;
    let left = 0;
    for (let x = 0; x < width; x++) {
      const colour = pixels[y * width + x]!;
      rows[at++] = (colour >>> 16) - (left >>> 16);
      rows[at++] = (colour >>> 8) - (left >>> 8);
      rows[at++] = colour - left;
      left = colour;
    }
  }
  const data = await deflateAsync(rows, { level: 3 });
  return Buffer.concat([SIGNATURE, chunk('IHDR', header), chunk('IDAT', data), chunk('IEND', Buffer.alloc(0))]);
}

/** A binary PPM (P6), which every tool reads and which can be compared byte by byte. */
export function encodePpm(picture: Picture): Buffer {
  const { width, height, pixels } = picture;
  const header = Buffer.from(`P6\n${width} ${height}\n255\n`, 'latin1');
  const out = Buffer.alloc(header.length + width * height * 3);
  header.copy(out);
  let at = header.length;
  for (let i = 0; i < width * height; i++) {
    const colour = pixels[i]!;
    out[at++] = colour >>> 16;
    out[at++] = colour >>> 8;
    out[at++] = colour;
  }
  return out;
}

function chunk(type: string, data: Uint8Array): Buffer {
  const out = Buffer.alloc(12 + data.length);
  out.writeUInt32BE(data.length, 0);
  out.write(type, 4, 'latin1');
  out.set(data, 8);
  out.writeUInt32BE(crc32(out.subarray(4, 8 + data.length)), 8 + data.length);
  return out;
}
