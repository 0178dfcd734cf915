import { Cursor, Writer } from '../bytes/mod.ts';

// Input device (virtio 1.2 §5.8).

export const VIRTIO_INPUT_CFG_UNSET = 0x00;
export const VIRTIO_INPUT_CFG_ID_NAME = 0x01;
export const VIRTIO_INPUT_CFG_ID_SERIAL = 0x02;
export const VIRTIO_INPUT_CFG_ID_DEVIDS = 0x03;
export const VIRTIO_INPUT_CFG_PROP_BITS = 0x10;
export const VIRTIO_INPUT_CFG_EV_BITS = 0x11;
export const VIRTIO_INPUT_CFG_ABS_INFO = 0x12;

/** select, subsel, size, 5 reserved, union of 128 */
export const VIRTIO_INPUT_CONFIG_BYTES = 136;
export const VIRTIO_INPUT_CONFIG_UNION = 8;
export const VIRTIO_INPUT_CONFIG_UNION_BYTES = 128;
export const VIRTIO_INPUT_EVENT_BYTES = 8;

/** Linux evdev event types and the codes that we use */
export const EV_SYN = 0x00;
export const EV_KEY = 0x01;
export const EV_REL = 0x02;
export const EV_ABS = 0x03;
export const EV_LED = 0x11;
export const EV_REP = 0x14;
export const SYN_REPORT = 0;
export const REL_HWHEEL = 6;
export const REL_WHEEL = 8;
export const ABS_X = 0;
export const ABS_Y = 1;
export const LED_NUML = 0;
export const LED_CAPSL = 1;
export const LED_SCROLLL = 2;
export const REP_DELAY = 0;
export const REP_PERIOD = 1;
export const BTN_LEFT = 0x110;
export const BTN_RIGHT = 0x111;
export const BTN_MIDDLE = 0x112;
export const BTN_SIDE = 0x113;
export const BTN_EXTRA = 0x114;
export const BTN_TOOL_PEN = 0x140;
export const BTN_TOUCH = 0x14a;

/** `struct virtio_input_event` */
export interface VirtioInputEvent {
  readonly type: number;
  readonly code: number;
  /** Signed in evdev */
  readonly value: number;
}

export function decodeVirtioInputEvent(bytes: Uint8Array): VirtioInputEvent {
  const cursor = new Cursor(bytes, 'virtio_input_event');
  const event = { type: cursor.u16le('type'), code: cursor.u16le('code'), value: cursor.u32le('value') | 0 };
  cursor.end();
  return event;
}

export function encodeVirtioInputEvent(event: VirtioInputEvent): Uint8Array<ArrayBuffer> {
  return new Writer(VIRTIO_INPUT_EVENT_BYTES)
    .u16le(event.type)
    .u16le(event.code)
    .u32le(event.value >>> 0)
    .finish();
}

/** `struct virtio_input_absinfo` */
export function encodeVirtioInputAbsInfo(min: number, max: number): Uint8Array<ArrayBuffer> {
  return new Writer(20).u32le(min).u32le(max).u32le(0).u32le(0).u32le(0).finish();
}

/** `struct virtio_input_devids` */
export function encodeVirtioInputDevIds(ids: {
  bustype: number;
  vendor: number;
  product: number;
  version: number;
}): Uint8Array<ArrayBuffer> {
  return new Writer(8).u16le(ids.bustype).u16le(ids.vendor).u16le(ids.product).u16le(ids.version).finish();
}

/** A bitmap with the given bits set, as short as it can be. */
export function encodeEvdevBits(codes: Iterable<number>): Uint8Array<ArrayBuffer> {
  const bits = new Uint8Array(VIRTIO_INPUT_CONFIG_UNION_BYTES);
  let used = 0;
  for (const code of codes) {
    if (code < 0 || code >= bits.length * 8) throw new RangeError(`Cannot set evdev bit ${code}: limit is 1023`);
    bits[code >> 3]! |= 1 << (code & 7);
    used = Math.max(used, (code >> 3) + 1);
  }
  return bits.slice(0, used);
}
