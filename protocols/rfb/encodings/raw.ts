import type { PixelPacker } from '../pixel_format.ts';
import type { Area } from '../server_message.ts';
import type { Picture } from './picture.ts';

/** Raw (§7.7.1): the pixels of `area`, row by row. The area must lie inside the picture. */
export function encodeRaw(picture: Picture, area: Area, packer: PixelPacker): Uint8Array {
  const out = new Uint8Array(area.width * area.height * packer.bytes);
  const { pixels, width } = picture;
  let at = 0;
  for (let y = area.y; y < area.y + area.height; y++) {
    const end = y * width + area.x + area.width;
    for (let i = y * width + area.x; i < end; i++) at = packer.writePixel(pixels[i]!, out, at);
  }
  return out;
}
