import { Cursor, type FrameSize, WireError } from '../bytes/mod.ts';
import { ClientMessageType } from './constants.ts';
import { MAX_CUT_TEXT_BYTES, MAX_ENCODINGS, MAX_FENCE_BYTES, MAX_SCREENS } from './limits.ts';
import { decodePixelFormat, type PixelFormat } from './pixel_format.ts';

/** What the client has listed in SetEncodings and we have acknowledged: it changes sizes and what is allowed. */
export interface NegotiatedInput {
  readonly extendedKeyEvent: boolean;
  readonly extendedMouseButtons: boolean;
  readonly fence: boolean;
  readonly continuousUpdates: boolean;
  readonly extendedDesktopSize: boolean;
}

export interface Screen {
  readonly id: number;
  readonly x: number;
  readonly y: number;
  readonly width: number;
  readonly height: number;
  readonly flags: number;
}

/** As sent: nothing here is clipped to a framebuffer yet. */
export interface RequestedRegion {
  readonly x: number;
  readonly y: number;
  readonly width: number;
  readonly height: number;
}

export type ClientMessage =
  | { readonly type: 'set-pixel-format'; readonly format: PixelFormat }
  | { readonly type: 'set-encodings'; readonly encodings: readonly number[] }
  | ({ readonly type: 'update-request'; readonly incremental: boolean } & RequestedRegion)
  /** `scancode` is an XT set 1 code with 0x80 for the E0 prefix, 0 when the client has none */
  | { readonly type: 'key'; readonly down: boolean; readonly keysym: number; readonly scancode: number }
  /** `buttons`: bits 0–2 left, middle, right; 3–6 wheel up, down, left, right; 7 back, 8 forward */
  | { readonly type: 'pointer'; readonly x: number; readonly y: number; readonly buttons: number }
  | { readonly type: 'cut-text'; readonly text: Uint8Array }
  | ({ readonly type: 'continuous-updates'; readonly enable: boolean } & RequestedRegion)
  | { readonly type: 'fence'; readonly flags: number; readonly payload: Uint8Array }
  | {
      readonly type: 'set-desktop-size';
      readonly width: number;
      readonly height: number;
      readonly screens: readonly Screen[];
    };

const QEMU_EXTENDED_KEY = 0;

/** For a FrameDecoder: size of the message that starts with `head`. Throws on what was not negotiated. */
export function clientMessageSize(head: Uint8Array, negotiated: NegotiatedInput): FrameSize {
  const type = head[0]!;
  switch (type) {
    case ClientMessageType.setPixelFormat:
      return { bytes: 20 };
    case ClientMessageType.setEncodings: {
      if (head.length < 4) return { need: 4 };
      const count = (head[2]! << 8) | head[3]!;
      if (count > MAX_ENCODINGS) throw tooMuch('SetEncodings', `${count} encodings`, MAX_ENCODINGS);
      return { bytes: 4 + count * 4 };
    }
    case ClientMessageType.framebufferUpdateRequest:
      return { bytes: 10 };
    case ClientMessageType.keyEvent:
      return { bytes: 8 };
    case ClientMessageType.pointerEvent: {
      if (head.length < 2) return { need: 2 };
      // The marker means something only after the extension was acknowledged; before it is a button 8 that we lack
      return { bytes: negotiated.extendedMouseButtons && (head[1]! & 0x80) !== 0 ? 7 : 6 };
    }
    case ClientMessageType.clientCutText: {
      if (head.length < 8) return { need: 8 };
      const length = new Cursor(head.subarray(4, 8), 'ClientCutText').u32('length');
      if (length >= 0x8000_0000) {
        // A negative length starts the extended clipboard, which this server never announces
        throw new WireError('ERR_WIRE_STATE', 'Cannot accept ClientCutText: extended clipboard was not negotiated', {
          message: 'ClientCutText',
        });
      }
      if (length > MAX_CUT_TEXT_BYTES) throw tooMuch('ClientCutText', `${length} bytes`, MAX_CUT_TEXT_BYTES);
      return { bytes: 8 + length };
    }
    case ClientMessageType.enableContinuousUpdates:
      if (!negotiated.continuousUpdates) throw notNegotiated('EnableContinuousUpdates');
      return { bytes: 10 };
    case ClientMessageType.clientFence: {
      if (!negotiated.fence) throw notNegotiated('ClientFence');
      if (head.length < 9) return { need: 9 };
      if (head[8]! > MAX_FENCE_BYTES) throw tooMuch('ClientFence', `${head[8]} bytes`, MAX_FENCE_BYTES);
      return { bytes: 9 + head[8]! };
    }
    case ClientMessageType.setDesktopSize: {
      if (!negotiated.extendedDesktopSize) throw notNegotiated('SetDesktopSize');
      if (head.length < 7) return { need: 7 };
      if (head[6]! > MAX_SCREENS) throw tooMuch('SetDesktopSize', `${head[6]} screens`, MAX_SCREENS);
      return { bytes: 8 + head[6]! * 16 };
    }
    case ClientMessageType.qemu: {
      if (head.length < 2) return { need: 2 };
      if (head[1] !== QEMU_EXTENDED_KEY) {
        throw new WireError('ERR_WIRE_VALUE', `Cannot accept QEMU client message ${head[1]}: unknown`, {
          message: 'QEMU client message',
        });
      }
      if (!negotiated.extendedKeyEvent) throw notNegotiated('QEMU extended key event');
      return { bytes: 12 };
    }
    default:
      throw new WireError('ERR_WIRE_VALUE', `Cannot accept client message ${type}: unknown or not negotiated`, {
        message: 'client message',
      });
  }
}

/** Decodes one whole message: shape only. Regions, keys and formats are checked where they are used. */
export function decodeClientMessage(frame: Uint8Array, negotiated: NegotiatedInput): ClientMessage {
  const cursor = new Cursor(frame, 'client message');
  const message = decode(cursor, negotiated);
  cursor.end();
  return message;
}

function decode(cursor: Cursor, negotiated: NegotiatedInput): ClientMessage {
  const type = cursor.u8('message-type');
  switch (type) {
    case ClientMessageType.setPixelFormat:
      cursor.skip(3, 'padding');
      return { type: 'set-pixel-format', format: decodePixelFormat(cursor) };
    case ClientMessageType.setEncodings: {
      cursor.skip(1, 'padding');
      const count = cursor.u16('number-of-encodings');
      if (count > MAX_ENCODINGS) throw tooMuch('SetEncodings', `${count} encodings`, MAX_ENCODINGS);
      const encodings: number[] = [];
      for (let i = 0; i < count; i++) encodings.push(cursor.i32('encoding-type'));
      return { type: 'set-encodings', encodings };
    }
    case ClientMessageType.framebufferUpdateRequest: {
      const incremental = cursor.u8('incremental') !== 0;
      return { type: 'update-request', incremental, ...region(cursor) };
    }
    case ClientMessageType.keyEvent: {
      const down = cursor.u8('down-flag') !== 0;
      cursor.skip(2, 'padding');
      return { type: 'key', down, keysym: cursor.u32('key'), scancode: 0 };
    }
    case ClientMessageType.pointerEvent: {
      const mask = cursor.u8('button-mask');
      const x = cursor.u16('x-position');
      const y = cursor.u16('y-position');
      const extended = negotiated.extendedMouseButtons && (mask & 0x80) !== 0;
      // Bits 2–7 of the second byte are reserved
      const high = extended ? (cursor.u8('extended-button-mask') & 0x03) << 7 : 0;
      return { type: 'pointer', x, y, buttons: (mask & 0x7f) | high };
    }
    case ClientMessageType.clientCutText: {
      cursor.skip(3, 'padding');
      return { type: 'cut-text', text: cursor.bytes(cursor.u32('length'), 'text') };
    }
    case ClientMessageType.enableContinuousUpdates: {
      const enable = cursor.u8('enable-flag') !== 0;
      return { type: 'continuous-updates', enable, ...region(cursor) };
    }
    case ClientMessageType.clientFence: {
      cursor.skip(3, 'padding');
      const flags = cursor.u32('flags');
      return { type: 'fence', flags, payload: cursor.bytes(cursor.u8('length'), 'payload') };
    }
    case ClientMessageType.setDesktopSize: {
      cursor.skip(1, 'padding');
      const width = cursor.u16('width');
      const height = cursor.u16('height');
      const count = cursor.u8('number-of-screens');
      cursor.skip(1, 'padding');
      if (count > MAX_SCREENS) throw tooMuch('SetDesktopSize', `${count} screens`, MAX_SCREENS);
      const screens: Screen[] = [];
      for (let i = 0; i < count; i++) {
        const id = cursor.u32('id');
        screens.push({ id, ...region(cursor), flags: cursor.u32('flags') });
      }
      return { type: 'set-desktop-size', width, height, screens };
    }
    case ClientMessageType.qemu: {
      cursor.expectU8(QEMU_EXTENDED_KEY, 'submessage-type');
      const down = cursor.u16('down-flag') !== 0;
      const keysym = cursor.u32('keysym');
      return { type: 'key', down, keysym, scancode: cursor.u32('keycode') };
    }
    default:
      throw cursor.error('ERR_WIRE_VALUE', `Cannot accept client message ${type}: unknown`);
  }
}

function region(cursor: Cursor): RequestedRegion {
  return {
    x: cursor.u16('x-position'),
    y: cursor.u16('y-position'),
    width: cursor.u16('width'),
    height: cursor.u16('height'),
  };
}

/**
 * The part of a requested region that lies inside the framebuffer; undefined when none does.
 * A client may ask for the size it knew a moment ago, so this clips instead of refusing.
 */
export function clipRegion(region: RequestedRegion, width: number, height: number): RequestedRegion | undefined {
  if (region.x >= width || region.y >= height) return undefined;
  const clipped = {
    x: region.x,
    y: region.y,
    width: Math.min(region.width, width - region.x),
    height: Math.min(region.height, height - region.y),
  };
  return clipped.width === 0 || clipped.height === 0 ? undefined : clipped;
}

/** True when every screen lies inside the framebuffer, ids are unique and at least one screen is there. */
export function isValidLayout(width: number, height: number, screens: readonly Screen[]): boolean {
  if (width === 0 || height === 0 || screens.length === 0) return false;
  const ids = new Set(screens.map((screen) => screen.id));
  if (ids.size !== screens.length) return false;
  return screens.every(
    (screen) =>
      screen.width > 0 &&
      screen.height > 0 &&
      screen.x < width &&
      screen.width <= width - screen.x &&
      screen.y < height &&
      screen.height <= height - screen.y,
  );
}

function notNegotiated(message: string): WireError {
  return new WireError('ERR_WIRE_STATE', `Cannot accept ${message}: it was not negotiated`, { message });
}

function tooMuch(message: string, found: string, limit: number): WireError {
  return new WireError('ERR_WIRE_LIMIT', `Cannot accept ${message}: ${found}, limit is ${limit}`, { message });
}
