import { Cursor, WireError, Writer } from '../bytes/mod.ts';

// The display link between the machine role and the console role: payloads of Channel frames.
//
//   machine → console                          console → machine
//   surface   width, height (0 × 0: none)      key        evdev code, down
//   tile      x, y, width, height, pixels      pointer    x, y in 0..32767, buttons
//   frame-end serial of the last refresh       wheel      vertical, horizontal detents
//   cursor    shape                            resize     width, height wanted
//   cursor-position                            refresh    serial: send everything again
//   leds                                       watch      is anybody looking
//
// Either side may have been taken over by its peer, so each validates what comes: sizes here, tiles against the
// surface in the console, codes and ranges here for the machine. The machine sends no tiles while nobody watches,
// except to answer a refresh; a frame-end closes each batch, and a viewer is never shown half of one.

export const DisplayFrame = {
  surface: 1,
  tile: 2,
  frameEnd: 3,
  cursor: 4,
  cursorPosition: 5,
  leds: 6,
  key: 32,
  pointer: 33,
  wheel: 34,
  resize: 35,
  refresh: 36,
  watch: 37,
} as const;

/** Pixels of one tile message, in `bytes` */
export const MAX_TILE_BYTES = 256 << 10;
/** Largest payload on this link: give it to the Channel of both sides */
export const MAX_DISPLAY_PAYLOAD_BYTES = MAX_TILE_BYTES + (8 << 10);
/** Side of a surface, in `pixels` */
export const MAX_SURFACE_SIDE = 16384;
/** Area of a surface: 64 MiB */
export const MAX_SURFACE_PIXELS = 1 << 24;
/** Side of a cursor, in `pixels` */
export const MAX_POINTER_SHAPE_SIDE = 256;
/** KEY_MAX of Linux's input-event-codes.h */
export const MAX_EVDEV_CODE = 0x2ff;
export const POINTER_RANGE = 32767;
/** Wheel detents in one message */
export const MAX_WHEEL_STEPS = 127;

export interface TileMessage {
  readonly x: number;
  readonly y: number;
  readonly width: number;
  readonly height: number;
  /** Bytes B G R X, rows without gaps */
  readonly pixels: Uint8Array;
}

export interface CursorMessage {
  readonly width: number;
  readonly height: number;
  readonly hotX: number;
  readonly hotY: number;
  /** Bytes B G R A, premultiplied; empty when hidden */
  readonly pixels: Uint8Array;
}

/** From the machine role. */
export type DisplayMessage =
  | { readonly type: 'surface'; readonly width: number; readonly height: number }
  | ({ readonly type: 'tile' } & TileMessage)
  | { readonly type: 'frame-end'; readonly serial: number }
  | ({ readonly type: 'cursor' } & CursorMessage)
  | { readonly type: 'cursor-position'; readonly x: number; readonly y: number }
  | { readonly type: 'leds'; readonly leds: number };

/** From the console role. */
export type InputMessage =
  | { readonly type: 'key'; readonly code: number; readonly down: boolean }
  | { readonly type: 'pointer'; readonly x: number; readonly y: number; readonly buttons: number }
  | { readonly type: 'wheel'; readonly vertical: number; readonly horizontal: number }
  | { readonly type: 'resize'; readonly width: number; readonly height: number }
  | { readonly type: 'refresh'; readonly serial: number }
  | { readonly type: 'watch'; readonly watching: boolean };

/** A frame for Channel.send(): `channel.send(frame.type, ...frame.parts)`. */
export interface OutgoingFrame {
  readonly type: number;
  readonly parts: readonly Uint8Array[];
}

export function encodeDisplayMessage(message: DisplayMessage): OutgoingFrame {
  const m = message;
  switch (m.type) {
    case 'surface':
      return frame(DisplayFrame.surface, new Writer(4).u16(m.width).u16(m.height));
    case 'tile':
      return frame(DisplayFrame.tile, new Writer(8).u16(m.x).u16(m.y).u16(m.width).u16(m.height), m.pixels);
    case 'frame-end':
      return frame(DisplayFrame.frameEnd, new Writer(4).u32(m.serial));
    case 'cursor':
      return frame(DisplayFrame.cursor, new Writer(8).u16(m.width).u16(m.height).u16(m.hotX).u16(m.hotY), m.pixels);
    case 'cursor-position':
      return frame(DisplayFrame.cursorPosition, new Writer(8).i32(m.x).i32(m.y));
    case 'leds':
      return frame(DisplayFrame.leds, new Writer(1).u8(m.leds));
  }
}

/** Shape and sizes; a tile's place is checked against the surface by whoever draws it. */
export function decodeDisplayMessage(type: number, payload: Uint8Array): DisplayMessage {
  const cursor = new Cursor(payload, 'display message');
  const message = decodeDisplay(type, cursor);
  cursor.end();
  return message;
}

function decodeDisplay(type: number, cursor: Cursor): DisplayMessage {
  switch (type) {
    case DisplayFrame.surface: {
      const width = cursor.u16('width');
      const height = cursor.u16('height');
      if (!isSurfaceSize(width, height) && (width !== 0 || height !== 0)) {
        throw cursor.error('ERR_WIRE_LIMIT', `Cannot show a surface of ${width}x${height}: ${surfaceLimit}`);
      }
      return { type: 'surface', width, height };
    }
    case DisplayFrame.tile: {
      const [x, y] = [cursor.u16('x'), cursor.u16('y')];
      const [width, height] = [cursor.u16('width'), cursor.u16('height')];
      const bytes = width * height * 4;
      if (bytes === 0 || bytes > MAX_TILE_BYTES) {
        throw cursor.error(
          'ERR_WIRE_LIMIT',
          `Cannot take a tile of ${width}x${height}: limit is ${MAX_TILE_BYTES} bytes`,
        );
      }
      return { type: 'tile', x, y, width, height, pixels: cursor.bytes(bytes, 'pixels') };
    }
    case DisplayFrame.frameEnd:
      return { type: 'frame-end', serial: cursor.u32('serial') };
    case DisplayFrame.cursor: {
      const [width, height] = [cursor.u16('width'), cursor.u16('height')];
      const [hotX, hotY] = [cursor.u16('hot-x'), cursor.u16('hot-y')];
      if (width > MAX_POINTER_SHAPE_SIDE || height > MAX_POINTER_SHAPE_SIDE) {
        throw cursor.error('ERR_WIRE_LIMIT', `Cannot take a cursor of ${width}x${height}: limit is 256x256`);
      }
      return { type: 'cursor', width, height, hotX, hotY, pixels: cursor.bytes(width * height * 4, 'pixels') };
    }
    case DisplayFrame.cursorPosition:
      return { type: 'cursor-position', x: cursor.i32('x'), y: cursor.i32('y') };
    case DisplayFrame.leds:
      return { type: 'leds', leds: cursor.u8('leds') & 0x07 };
    default:
      throw cursor.error('ERR_WIRE_VALUE', `Cannot take display message ${type}: unknown`);
  }
}

export function encodeInputMessage(message: InputMessage): OutgoingFrame {
  const m = message;
  switch (m.type) {
    case 'key':
      return frame(DisplayFrame.key, new Writer(3).u16(m.code).u8(m.down ? 1 : 0));
    case 'pointer':
      return frame(DisplayFrame.pointer, new Writer(5).u16(m.x).u16(m.y).u8(m.buttons));
    case 'wheel':
      return frame(DisplayFrame.wheel, new Writer(8).i32(m.vertical).i32(m.horizontal));
    case 'resize':
      return frame(DisplayFrame.resize, new Writer(4).u16(m.width).u16(m.height));
    case 'refresh':
      return frame(DisplayFrame.refresh, new Writer(4).u32(m.serial));
    case 'watch':
      return frame(DisplayFrame.watch, new Writer(1).u8(m.watching ? 1 : 0));
  }
}

/** Everything here reaches the guest's devices: each value is in its range or refused. */
export function decodeInputMessage(type: number, payload: Uint8Array): InputMessage {
  const cursor = new Cursor(payload, 'input message');
  const message = decodeInput(type, cursor);
  cursor.end();
  return message;
}

function decodeInput(type: number, cursor: Cursor): InputMessage {
  switch (type) {
    case DisplayFrame.key: {
      const code = cursor.u16('code');
      if (code === 0 || code > MAX_EVDEV_CODE) {
        throw cursor.error('ERR_WIRE_VALUE', `Cannot press key ${code}: range is 1..${MAX_EVDEV_CODE}`);
      }
      return { type: 'key', code, down: flag(cursor, 'down') };
    }
    case DisplayFrame.pointer: {
      const [x, y, buttons] = [cursor.u16('x'), cursor.u16('y'), cursor.u8('buttons')];
      if (x > POINTER_RANGE || y > POINTER_RANGE) {
        throw cursor.error('ERR_WIRE_VALUE', `Cannot move the pointer to ${x},${y}: range is 0..${POINTER_RANGE}`);
      }
      if (buttons > 0x1f)
        throw cursor.error('ERR_WIRE_VALUE', `Cannot press buttons 0x${buttons.toString(16)}: five exist`);
      return { type: 'pointer', x, y, buttons };
    }
    case DisplayFrame.wheel: {
      const [vertical, horizontal] = [cursor.i32('vertical'), cursor.i32('horizontal')];
      if (Math.abs(vertical) > MAX_WHEEL_STEPS || Math.abs(horizontal) > MAX_WHEEL_STEPS) {
        throw cursor.error(
          'ERR_WIRE_VALUE',
          `Cannot turn the wheel ${vertical},${horizontal}: limit is ${MAX_WHEEL_STEPS}`,
        );
      }
      return { type: 'wheel', vertical, horizontal };
    }
    case DisplayFrame.resize: {
      const [width, height] = [cursor.u16('width'), cursor.u16('height')];
      if (!isSurfaceSize(width, height)) {
        throw cursor.error('ERR_WIRE_VALUE', `Cannot ask for ${width}x${height}: ${surfaceLimit}`);
      }
      return { type: 'resize', width, height };
    }
    case DisplayFrame.refresh:
      return { type: 'refresh', serial: cursor.u32('serial') };
    case DisplayFrame.watch:
      return { type: 'watch', watching: flag(cursor, 'watching') };
    default:
      throw cursor.error('ERR_WIRE_VALUE', `Cannot take input message ${type}: unknown`);
  }
}

const surfaceLimit = `limits are 1..${MAX_SURFACE_SIDE} a side and ${MAX_SURFACE_PIXELS} pixels`;

/** True for a size that both sides can hold. */
export function isSurfaceSize(width: number, height: number): boolean {
  const side = (value: number) => Number.isInteger(value) && value >= 1 && value <= MAX_SURFACE_SIDE;
  return side(width) && side(height) && width * height <= MAX_SURFACE_PIXELS;
}

function flag(cursor: Cursor, field: string): boolean {
  const value = cursor.u8(field);
  if (value > 1) throw new WireError('ERR_WIRE_VALUE', `Cannot read ${field}: ${value}, expected 0 or 1`);
  return value === 1;
}

function frame(type: number, head: Writer, ...bulk: Uint8Array[]): OutgoingFrame {
  return { type, parts: [head.finish(), ...bulk] };
}
