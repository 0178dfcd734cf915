import { Writer } from '../bytes/mod.ts';
import type { Screen } from './client_message.ts';
import { Encoding, FenceFlag, ServerMessageType } from './constants.ts';
import { MAX_CURSOR_SIDE, MAX_FENCE_BYTES, MAX_NAME_BYTES } from './limits.ts';
import { encodePixelFormat, type PixelFormat, type PixelPacker } from './pixel_format.ts';

export interface Area {
  readonly x: number;
  readonly y: number;
  readonly width: number;
  readonly height: number;
}

/** ServerInit (§7.3.2); the name is cut at 1 KiB. */
export function encodeServerInit(width: number, height: number, format: PixelFormat, name: string): Uint8Array {
  const text = boundedName(name);
  return new Writer(24 + text.length)
    .u16(width)
    .u16(height)
    .bytes(encodePixelFormat(format))
    .u32(text.length)
    .bytes(text)
    .finish();
}

/** Starts a FramebufferUpdate; `count` rectangles follow. */
export function encodeUpdateHeader(count: number): Uint8Array {
  return new Writer(4).u8(ServerMessageType.framebufferUpdate).u8(0).u16(count).finish();
}

export function encodeRectangleHeader(area: Area, encoding: number): Uint8Array {
  return rectangle(area, encoding).finish();
}

/** An empty rectangle: how the server says that it knows an extension. */
export function encodeAcknowledgement(encoding: number): Uint8Array {
  return rectangle({ x: 0, y: 0, width: 0, height: 0 }, encoding).finish();
}

/** QEMU pointer motion change: absolute coordinates (x = 1). */
export function encodeAbsolutePointer(): Uint8Array {
  return rectangle({ x: 1, y: 0, width: 0, height: 0 }, Encoding.qemuPointerMotionChange).finish();
}

export function encodeDesktopSize(width: number, height: number): Uint8Array {
  return rectangle({ x: 0, y: 0, width, height }, Encoding.desktopSize).finish();
}

/** `reason` and `status` are ResizeReason and ResizeStatus. */
export function encodeExtendedDesktopSize(
  width: number,
  height: number,
  screens: readonly Screen[],
  reason: number,
  status: number,
): Uint8Array {
  const writer = rectangle({ x: reason, y: status, width, height }, Encoding.extendedDesktopSize)
    .u8(screens.length)
    .zeroes(3);
  for (const screen of screens) {
    writer.u32(screen.id).u16(screen.x).u16(screen.y).u16(screen.width).u16(screen.height).u32(screen.flags);
  }
  return writer.finish();
}

export function encodeDesktopName(name: string): Uint8Array {
  const text = boundedName(name);
  return rectangle({ x: 0, y: 0, width: 0, height: 0 }, Encoding.desktopName).u32(text.length).bytes(text).finish();
}

/** LED bits: 0 scroll, 1 num, 2 caps. */
export function encodeLedState(leds: number): Uint8Array {
  return rectangle({ x: 0, y: 0, width: 0, height: 0 }, Encoding.qemuLedState)
    .u8(leds & 0x07)
    .finish();
}

export function encodeVmwareLedState(leds: number): Uint8Array {
  return rectangle({ x: 0, y: 0, width: 0, height: 0 }, Encoding.vmwareLedState)
    .u32(leds & 0x07)
    .finish();
}

/** Up to 256 × 256; bytes B G R A, premultiplied; no pixels: hidden. */
export interface CursorShape {
  readonly width: number;
  readonly height: number;
  readonly hotX: number;
  readonly hotY: number;
  readonly pixels: Uint8Array;
}

/** The cursor in the best way that the client has listed, or undefined when it draws none. */
export function encodeCursor(
  cursor: CursorShape,
  encodings: ReadonlySet<number>,
  packer: PixelPacker,
): Uint8Array | undefined {
  const shape = checkedCursor(cursor);
  if (encodings.has(Encoding.cursorWithAlpha)) return encodeCursorWithAlpha(shape);
  if (encodings.has(Encoding.vmwareCursor)) return encodeVmwareCursor(shape);
  if (encodings.has(Encoding.cursor)) return encodeMaskedCursor(shape, packer);
  return undefined;
}

/** Cursor With Alpha pseudo-encoding (−314): one raw rectangle of R G B A, premultiplied. */
function encodeCursorWithAlpha(cursor: CursorShape): Uint8Array {
  const writer = cursorRectangle(cursor, Encoding.cursorWithAlpha).i32(Encoding.raw);
  const out = new Uint8Array(cursor.pixels.length);
  for (let i = 0; i < out.length; i += 4) {
    out[i] = cursor.pixels[i + 2]!;
    out[i + 1] = cursor.pixels[i + 1]!;
    out[i + 2] = cursor.pixels[i]!;
    out[i + 3] = cursor.pixels[i + 3]!;
  }
  return writer.bytes(out).finish();
}

/** VMware cursor, type 1: R G B A, not premultiplied (viewers put it on a canvas as it is). */
function encodeVmwareCursor(cursor: CursorShape): Uint8Array {
  const writer = cursorRectangle(cursor, Encoding.vmwareCursor).u8(1).u8(0);
  const out = new Uint8Array(cursor.pixels.length);
  for (let i = 0; i < out.length; i += 4) {
    const alpha = cursor.pixels[i + 3]!;
    for (let channel = 0; channel < 3; channel++) {
      const value = cursor.pixels[i + 2 - channel]!;
      out[i + channel] = alpha === 0 ? 0 : Math.min(255, Math.round((value * 255) / alpha));
    }
    out[i + 3] = alpha;
  }
  return writer.bytes(out).finish();
}

/** The old form: pixels in the client's format and one mask bit each. */
function encodeMaskedCursor(cursor: CursorShape, packer: PixelPacker): Uint8Array {
  const { width, height, pixels } = cursor;
  const maskRow = (width + 7) >> 3;
  const body = new Uint8Array(width * height * packer.bytes + maskRow * height);
  let at = 0;
  for (let i = 0; i < pixels.length; i += 4) {
    const colour = (pixels[i + 2]! << 16) | (pixels[i + 1]! << 8) | pixels[i]!;
    at = packer.writePixel(colour, body, at);
  }
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (pixels[(y * width + x) * 4 + 3]! >= 128) {
        const index = at + y * maskRow + (x >> 3);
        body[index] = body[index]! | (0x80 >> (x & 7));
      }
    }
  }
  return cursorRectangle(cursor, Encoding.cursor).bytes(body).finish();
}

function cursorRectangle(cursor: CursorShape, encoding: number): Writer {
  return rectangle({ x: cursor.hotX, y: cursor.hotY, width: cursor.width, height: cursor.height }, encoding);
}

/** Caller's duty, so a breach is our own bug; a hidden cursor becomes 0 × 0. */
function checkedCursor(cursor: CursorShape): CursorShape {
  const { width, height, hotX, hotY, pixels } = cursor;
  if (pixels.length === 0) return { width: 0, height: 0, hotX: 0, hotY: 0, pixels };
  if (width > MAX_CURSOR_SIDE || height > MAX_CURSOR_SIDE || pixels.length !== width * height * 4) {
    throw new RangeError(`Cannot send a cursor of ${width}x${height} with ${pixels.length} bytes`);
  }
  // A hot spot outside makes some viewers draw nowhere
  return { ...cursor, hotX: Math.min(hotX, width - 1), hotY: Math.min(hotY, height - 1) };
}

/** The whole map of a client that asked for indexed colours (§7.6.2): entry n shows what BGR233 n means. */
export function encodeColourMap(): Uint8Array {
  const writer = new Writer(6 + 256 * 6).u8(ServerMessageType.setColourMapEntries).u8(0).u16(0).u16(256);
  for (let index = 0; index < 256; index++) {
    writer.u16(Math.round(((index & 7) * 0xffff) / 7));
    writer.u16(Math.round((((index >> 3) & 7) * 0xffff) / 7));
    writer.u16(Math.round((((index >> 6) & 3) * 0xffff) / 3));
  }
  return writer.finish();
}

export function encodeBell(): Uint8Array {
  return Uint8Array.of(ServerMessageType.bell);
}

/** Announces continuous updates, and answers their end. */
export function encodeEndOfContinuousUpdates(): Uint8Array {
  return Uint8Array.of(ServerMessageType.endOfContinuousUpdates);
}

export function encodeServerFence(flags: number, payload: Uint8Array): Uint8Array {
  if (payload.length > MAX_FENCE_BYTES) throw new RangeError(`Cannot send a fence of ${payload.length} bytes`);
  return new Writer(9 + payload.length)
    .u8(ServerMessageType.serverFence)
    .zeroes(3)
    .u32(flags >>> 0)
    .u8(payload.length)
    .bytes(payload)
    .finish();
}

/** The flags of an answer to a client's fence: those we honour, without the request bit (§7.6.7). */
export function fenceReplyFlags(requested: number): number {
  return requested & (FenceFlag.blockBefore | FenceFlag.blockAfter | FenceFlag.syncNext);
}

function rectangle(area: Area, encoding: number): Writer {
  return new Writer(32).u16(area.x).u16(area.y).u16(area.width).u16(area.height).i32(encoding);
}

/** Cut at a character, so that the rest is still UTF-8. */
function boundedName(name: string): Uint8Array {
  const encoder = new TextEncoder();
  let text = name;
  let bytes = encoder.encode(text);
  while (bytes.length > MAX_NAME_BYTES) {
    text = [...text].slice(0, Math.floor(MAX_NAME_BYTES / 4)).join('');
    bytes = encoder.encode(text);
  }
  return bytes;
}
