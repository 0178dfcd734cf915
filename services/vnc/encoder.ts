import { constants, deflateRaw, deflateRawSync } from 'node:zlib';
import {
  type Area,
  Encoding,
  encodeRaw,
  type Picture,
  type PixelPacker,
  ZrleTileEncoder,
} from '../../protocols/rfb/mod.ts';
import type { EncodeCache } from './encode_cache.ts';

/** Up to this the thread pool's hand-over costs more than the work, in `bytes` */
const DEFLATE_HERE_BYTES = 24 << 10;

/** Encodings that this server makes, as a client's preference order is searched. */
export type PictureEncoding = typeof Encoding.raw | typeof Encoding.zrle;

const tiles = new ZrleTileEncoder();

/** What was chosen for one viewer. */
export interface EncodingChoice {
  readonly encoding: PictureEncoding;
  /** zlib level, 1 to 6 */
  readonly level: number;
  readonly packer: PixelPacker;
}

/**
 * One area as bytes: raw pixels, or a ZRLE segment that the viewer's session still has to frame. Reads the picture
 * before it returns, so later changes do not tear the area; viewers with equal choices share the result.
 */
export function encodeArea(
  picture: Picture,
  area: Area,
  choice: EncodingChoice,
  cache: EncodeCache | undefined,
): Promise<Uint8Array> {
  const make = () => {
    if (choice.encoding === Encoding.raw) return Promise.resolve(encodeRaw(picture, area, choice.packer));
    return deflateSegment(tiles.encode(picture, area, choice.packer), choice.level);
  };
  if (cache === undefined) return make();
  const key = `${choice.encoding} ${choice.level} ${choice.packer.key} ${area.x} ${area.y} ${area.width} ${area.height}`;
  return cache.get(key, make);
}

/** See SegmentDeflater: no history, ends on a byte, not final. */
export function deflateSegment(data: Uint8Array, level: number): Promise<Uint8Array> {
  const options = { level, finishFlush: constants.Z_SYNC_FLUSH };
  if (data.length <= DEFLATE_HERE_BYTES) return Promise.resolve(deflateRawSync(data, options));
  return new Promise((resolve, reject) => {
    deflateRaw(data, options, (error, result) => (error ? reject(error) : resolve(result)));
  });
}
