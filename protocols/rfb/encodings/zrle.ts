import { Writer } from '../../bytes/mod.ts';
import type { PixelPacker } from '../pixel_format.ts';
import type { Area } from '../server_message.ts';
import type { Picture } from './picture.ts';

// ZRLE (§7.7.6): tiles of 64 × 64, each in the cheapest of five forms, all of one rectangle through one zlib stream
// that lasts as long as the connection.
//
// The stream is made of segments without history: raw deflate, ended by an empty stored block (a sync flush), so
// that each ends on a byte. Joined behind one zlib header they are one valid stream, and each segment is a pure
// function of pixels and format: any thread may make it, and all viewers with that format can share it.

const TILE = 64;
const TILE_PIXELS = TILE * TILE;
/** Largest palette of the run-length form */
const MAX_PALETTE = 127;
/** Largest palette of the packed form */
const MAX_PACKED = 16;
const HASH_SLOTS = 512;
const EMPTY = 0xffff_ffff;

/** CMF and FLG of a zlib stream: deflate, 32 KiB window, no dictionary (RFC 1950 §2.2). */
const ZLIB_HEADER = Uint8Array.of(0x78, 0x01);

/**
 * Deflates `data` alone (no zlib header) and ends it with a sync flush: byte aligned, not final, no reference to
 * earlier data. In Node: `deflateRaw(data, { finishFlush: Z_SYNC_FLUSH })`.
 */
export type SegmentDeflater = (data: Uint8Array) => Promise<Uint8Array>;

/** Frames a segment as the payload of a ZRLE rectangle; the first of a connection carries the zlib header. */
export function zrlePayload(segment: Uint8Array, firstOfStream: boolean): Uint8Array {
  const header = firstOfStream ? ZLIB_HEADER.length : 0;
  const writer = new Writer(4 + header + segment.length).u32(header + segment.length);
  if (firstOfStream) writer.bytes(ZLIB_HEADER);
  return writer.bytes(segment).finish();
}

/** Makes the tile data of ZRLE rectangles. Keeps only scratch memory: one can serve every viewer. */
export class ZrleTileEncoder {
  readonly #tile = new Uint32Array(TILE_PIXELS);
  readonly #indexes = new Uint8Array(TILE_PIXELS);
  readonly #palette = new Uint32Array(MAX_PALETTE + 1);
  readonly #slotColour = new Uint32Array(HASH_SLOTS);
  readonly #slotIndex = new Uint8Array(HASH_SLOTS);
  #out = new Uint8Array(1 << 16);
  #at = 0;

  /** The tiles of `area`, before deflate. The area must lie inside the picture. */
  encode(picture: Picture, area: Area, packer: PixelPacker): Uint8Array {
    this.#at = 0;
    const right = area.x + area.width;
    const bottom = area.y + area.height;
    for (let y = area.y; y < bottom; y += TILE) {
      for (let x = area.x; x < right; x += TILE) {
        this.#encodeTile(picture, x, y, Math.min(TILE, right - x), Math.min(TILE, bottom - y), packer);
      }
    }
    return this.#out.slice(0, this.#at);
  }

  #encodeTile(picture: Picture, left: number, top: number, width: number, height: number, packer: PixelPacker): void {
    const count = width * height;
    const pixelBytes = packer.cpixelBytes;
    const { colours, paletteRunBytes, plainRunBytes } = this.#classify(picture, left, top, width, height, pixelBytes);
    this.#reserve(1 + count * pixelBytes);
    if (colours === 1) {
      this.#out[this.#at++] = 1;
      this.#at = packer.writeCpixel(this.#palette[0]!, this.#out, this.#at);
      return;
    }
    // Before deflate: the smallest form wins
    const rawBytes = count * pixelBytes;
    let best = rawBytes;
    let form: 'raw' | 'packed' | 'palette-runs' | 'runs' = 'raw';
    if (plainRunBytes < best) {
      best = plainRunBytes;
      form = 'runs';
    }
    if (colours <= MAX_PALETTE) {
      const paletteBytes = colours * pixelBytes;
      if (paletteBytes + paletteRunBytes < best) {
        best = paletteBytes + paletteRunBytes;
        form = 'palette-runs';
      }
      if (colours <= MAX_PACKED) {
        const packedBytes = paletteBytes + height * ((width * bitsFor(colours) + 7) >> 3);
        if (packedBytes <= best) form = 'packed';
      }
    }
    if (form === 'packed') this.#writePacked(colours, width, height, packer);
    else if (form === 'palette-runs') this.#writePaletteRuns(colours, count, packer);
    else if (form === 'runs') this.#writeRuns(count, packer);
    else this.#writeRaw(count, packer);
  }

  /** Copies the tile, finds its colours (MAX_PALETTE + 1 means too many) and what its runs would cost. */
  #classify(picture: Picture, left: number, top: number, width: number, height: number, pixelBytes: number) {
    const { pixels } = picture;
    const tile = this.#tile;
    const indexes = this.#indexes;
    const palette = this.#palette;
    this.#slotColour.fill(EMPTY);
    let colours = 0;
    let paletteRunBytes = 0;
    let plainRunBytes = 0;
    let last = EMPTY;
    let lastIndex = 0;
    let run = 0;
    let at = 0;
    for (let y = 0; y < height; y++) {
      let source = (top + y) * picture.width + left;
      for (let x = 0; x < width; x++) {
        const colour = pixels[source++]! & 0xff_ffff;
        if (colour === last) {
          run++;
        } else {
          if (run > 0) {
            const more = Math.floor((run - 1) / 255) + 1;
            paletteRunBytes += run === 1 ? 1 : 1 + more;
            plainRunBytes += pixelBytes + more;
          }
          run = 1;
          last = colour;
          if (colours <= MAX_PALETTE) {
            let slot = (Math.imul(colour, 0x9e37_79b1) >>> 23) & (HASH_SLOTS - 1);
            for (;;) {
              const there = this.#slotColour[slot]!;
              if (there === colour) {
                lastIndex = this.#slotIndex[slot]!;
                break;
              }
              if (there === EMPTY) {
                palette[colours] = colour;
                lastIndex = colours++;
                this.#slotColour[slot] = colour;
                this.#slotIndex[slot] = lastIndex;
                break;
              }
              slot = (slot + 1) & (HASH_SLOTS - 1);
            }
          }
        }
        tile[at] = colour;
        indexes[at++] = lastIndex;
      }
    }
    const more = Math.floor((run - 1) / 255) + 1;
    paletteRunBytes += run === 1 ? 1 : 1 + more;
    plainRunBytes += pixelBytes + more;
    return { colours, paletteRunBytes, plainRunBytes };
  }

  #writePalette(colours: number, packer: PixelPacker): void {
    for (let i = 0; i < colours; i++) this.#at = packer.writeCpixel(this.#palette[i]!, this.#out, this.#at);
  }

  #writePacked(colours: number, width: number, height: number, packer: PixelPacker): void {
    const out = this.#out;
    out[this.#at++] = colours;
    this.#writePalette(colours, packer);
    const bits = bitsFor(colours);
    let index = 0;
    let at = this.#at;
    for (let y = 0; y < height; y++) {
      let byte = 0;
      let filled = 0;
      for (let x = 0; x < width; x++) {
        byte = (byte << bits) | this.#indexes[index++]!;
        filled += bits;
        if (filled === 8) {
          out[at++] = byte;
          byte = 0;
          filled = 0;
        }
      }
      if (filled > 0) out[at++] = byte << (8 - filled); // each row starts on a byte
    }
    this.#at = at;
  }

  #writePaletteRuns(colours: number, count: number, packer: PixelPacker): void {
    const out = this.#out;
    const indexes = this.#indexes;
    out[this.#at++] = 128 + colours;
    this.#writePalette(colours, packer);
    for (let i = 0; i < count; ) {
      const index = indexes[i]!;
      let run = 1;
      while (i + run < count && indexes[i + run] === index) run++;
      if (run === 1) {
        out[this.#at++] = index;
      } else {
        out[this.#at++] = 128 | index;
        this.#writeRunLength(run);
      }
      i += run;
    }
  }

  #writeRuns(count: number, packer: PixelPacker): void {
    const tile = this.#tile;
    this.#out[this.#at++] = 128;
    for (let i = 0; i < count; ) {
      const colour = tile[i]!;
      let run = 1;
      while (i + run < count && tile[i + run] === colour) run++;
      this.#at = packer.writeCpixel(colour, this.#out, this.#at);
      this.#writeRunLength(run);
      i += run;
    }
  }

  #writeRaw(count: number, packer: PixelPacker): void {
    this.#out[this.#at++] = 0;
    for (let i = 0; i < count; i++) this.#at = packer.writeCpixel(this.#tile[i]!, this.#out, this.#at);
  }

  /** One less than the run, in steps of 255 (§7.7.6). */
  #writeRunLength(run: number): void {
    let left = run - 1;
    while (left >= 255) {
      this.#out[this.#at++] = 255;
      left -= 255;
    }
    this.#out[this.#at++] = left;
  }

  #reserve(bytes: number): void {
    if (this.#at + bytes <= this.#out.length) return;
    const grown = new Uint8Array(Math.max(this.#at + bytes, this.#out.length * 2));
    grown.set(this.#out.subarray(0, this.#at));
    this.#out = grown;
  }
}

function bitsFor(colours: number): number {
  if (colours === 2) return 1;
  return colours <= 4 ? 2 : 4;
}
