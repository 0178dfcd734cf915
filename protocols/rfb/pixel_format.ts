import { type Cursor, WireError, Writer } from '../bytes/mod.ts';

/** Size of PIXEL_FORMAT, in `bytes` (§7.4) */
export const PIXEL_FORMAT_BYTES = 16;

/** PIXEL_FORMAT as on the wire; {@link validatePixelFormat} says which of them are pixels. */
export interface PixelFormat {
  readonly bitsPerPixel: number;
  readonly depth: number;
  readonly bigEndian: boolean;
  /** False: colours are indexes into a map that the server sends */
  readonly trueColour: boolean;
  readonly redMax: number;
  readonly greenMax: number;
  readonly blueMax: number;
  readonly redShift: number;
  readonly greenShift: number;
  readonly blueShift: number;
}

/** The server's own: 32 bits, bytes B G R X in memory order. */
export const BGRX: PixelFormat = {
  bitsPerPixel: 32,
  depth: 24,
  bigEndian: false,
  trueColour: true,
  redMax: 255,
  greenMax: 255,
  blueMax: 255,
  redShift: 16,
  greenShift: 8,
  blueShift: 0,
};

/** What stands behind a colour map of 256 entries: blue in the high bits. */
export const BGR233: PixelFormat = {
  bitsPerPixel: 8,
  depth: 8,
  bigEndian: false,
  trueColour: true,
  redMax: 7,
  greenMax: 7,
  blueMax: 3,
  redShift: 0,
  greenShift: 3,
  blueShift: 6,
};

export function encodePixelFormat(format: PixelFormat): Uint8Array {
  return new Writer(PIXEL_FORMAT_BYTES)
    .u8(format.bitsPerPixel)
    .u8(format.depth)
    .u8(format.bigEndian ? 1 : 0)
    .u8(format.trueColour ? 1 : 0)
    .u16(format.redMax)
    .u16(format.greenMax)
    .u16(format.blueMax)
    .u8(format.redShift)
    .u8(format.greenShift)
    .u8(format.blueShift)
    .zeroes(3)
    .finish();
}

/** Shape only. */
export function decodePixelFormat(cursor: Cursor): PixelFormat {
  const format = {
    bitsPerPixel: cursor.u8('bits-per-pixel'),
    depth: cursor.u8('depth'),
    bigEndian: cursor.u8('big-endian-flag') !== 0,
    trueColour: cursor.u8('true-colour-flag') !== 0,
    redMax: cursor.u16('red-max'),
    greenMax: cursor.u16('green-max'),
    blueMax: cursor.u16('blue-max'),
    redShift: cursor.u8('red-shift'),
    greenShift: cursor.u8('green-shift'),
    blueShift: cursor.u8('blue-shift'),
  };
  cursor.skip(3, 'padding');
  return format;
}

/**
 * Refuses what is not a pixel. A colour map is accepted at 8 bits only.
 * @throws WireError ERR_WIRE_VALUE
 */
export function validatePixelFormat(format: PixelFormat): PixelFormat {
  const refuse = (text: string) =>
    new WireError('ERR_WIRE_VALUE', `Cannot use pixel format: ${text}`, { message: 'SetPixelFormat' });
  const { bitsPerPixel, depth } = format;
  if (bitsPerPixel !== 8 && bitsPerPixel !== 16 && bitsPerPixel !== 32) {
    throw refuse(`${bitsPerPixel} bits per pixel, expected 8, 16 or 32`);
  }
  if (depth < 1 || depth > bitsPerPixel) throw refuse(`depth ${depth}, limit is ${bitsPerPixel}`);
  if (!format.trueColour) {
    if (bitsPerPixel !== 8) throw refuse(`a colour map at ${bitsPerPixel} bits, expected 8`);
    return format;
  }
  let used = 0;
  for (const [name, max, shift] of [
    ['red', format.redMax, format.redShift],
    ['green', format.greenMax, format.greenShift],
    ['blue', format.blueMax, format.blueShift],
  ] as const) {
    // §7.4: "always 2^N - 1"
    if (max === 0 || (max & (max + 1)) !== 0) throw refuse(`${name}-max is ${max}, expected 2^n - 1`);
    const bits = 32 - Math.clz32(max);
    if (shift + bits > bitsPerPixel) throw refuse(`${name} ends at bit ${shift + bits}, limit is ${bitsPerPixel}`);
    const mask = (max << shift) >>> 0;
    if ((used & mask) !== 0) throw refuse(`${name} overlaps another colour`);
    used = (used | mask) >>> 0;
  }
  return format;
}

/** True when two formats give the same bytes. */
export function samePixelFormat(a: PixelFormat, b: PixelFormat): boolean {
  return formatKey(a) === formatKey(b);
}

function formatKey(format: PixelFormat): string {
  const f = format;
  return `${f.bitsPerPixel}.${f.depth}.${f.bigEndian ? 'b' : 'l'}.${f.redMax}<${f.redShift}.${f.greenMax}<${f.greenShift}.${f.blueMax}<${f.blueShift}`;
}

/**
 * Turns colours (numbers 0x00RRGGBB) into the client's pixels. One table per channel: any max, any shift.
 * `bytes` and `cpixelBytes` are sizes on the wire; a CPIXEL (§7.7.5, ZRLE) leaves out the byte that says nothing.
 */
export class PixelPacker {
  readonly bytes: number;
  readonly cpixelBytes: number;
  /** Bits to drop from the right before a CPIXEL is written */
  readonly cpixelShift: number;
  readonly bigEndian: boolean;
  readonly red: Uint32Array;
  readonly green: Uint32Array;
  readonly blue: Uint32Array;
  /** Equal for formats whose bytes are equal */
  readonly key: string;

  /** `format` must have passed {@link validatePixelFormat}; a colour map is packed as {@link BGR233}. */
  constructor(format: PixelFormat) {
    const f = format.trueColour ? format : BGR233;
    this.bytes = f.bitsPerPixel / 8;
    this.bigEndian = f.bigEndian;
    this.red = channel(f.redMax, f.redShift);
    this.green = channel(f.greenMax, f.greenShift);
    this.blue = channel(f.blueMax, f.blueShift);
    this.key = formatKey(f);
    const mask = ((f.redMax << f.redShift) | (f.greenMax << f.greenShift) | (f.blueMax << f.blueShift)) >>> 0;
    const compact = f.bitsPerPixel === 32 && f.depth <= 24;
    if (compact && (mask & 0xff00_0000) === 0) {
      this.cpixelBytes = 3;
      this.cpixelShift = 0;
    } else if (compact && (mask & 0xff) === 0) {
      this.cpixelBytes = 3;
      this.cpixelShift = 8;
    } else {
      this.cpixelBytes = this.bytes;
      this.cpixelShift = 0;
    }
  }

  /** The client's pixel value of a colour 0x00RRGGBB. */
  pixel(colour: number): number {
    return (this.red[(colour >>> 16) & 0xff]! | this.green[(colour >>> 8) & 0xff]! | this.blue[colour & 0xff]!) >>> 0;
  }

  /** Writes one pixel of {@link bytes} at `at`; gives the offset behind it. */
  writePixel(colour: number, out: Uint8Array, at: number): number {
    return writeValue(this.pixel(colour), this.bytes, this.bigEndian, out, at);
  }

  /** Writes one CPIXEL at `at`; gives the offset behind it. */
  writeCpixel(colour: number, out: Uint8Array, at: number): number {
    return writeValue(this.pixel(colour) >>> this.cpixelShift, this.cpixelBytes, this.bigEndian, out, at);
  }
}

function writeValue(value: number, bytes: number, bigEndian: boolean, out: Uint8Array, at: number): number {
  if (bytes === 3) {
    out[at] = bigEndian ? value >>> 16 : value;
    out[at + 1] = value >>> 8;
    out[at + 2] = bigEndian ? value : value >>> 16;
    return at + 3;
  }
  if (bytes === 4) {
    out[at] = bigEndian ? value >>> 24 : value;
    out[at + 1] = bigEndian ? value >>> 16 : value >>> 8;
    out[at + 2] = bigEndian ? value >>> 8 : value >>> 16;
    out[at + 3] = bigEndian ? value : value >>> 24;
    return at + 4;
  }
  if (bytes === 2) {
    out[at] = bigEndian ? value >>> 8 : value;
    out[at + 1] = bigEndian ? value : value >>> 8;
    return at + 2;
  }
  out[at] = value;
  return at + 1;
}

function channel(max: number, shift: number): Uint32Array {
  const table = new Uint32Array(256);
  for (let value = 0; value < 256; value++) {
    table[value] = Math.floor((value * max + 127) / 255) * 2 ** shift;
  }
  return table;
}
