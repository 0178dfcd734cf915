import type { Observable } from 'rxjs';
import { BehaviorSubject } from 'rxjs/internal/BehaviorSubject';
import {
  ABS_X,
  ABS_Y,
  BTN_EXTRA,
  BTN_LEFT,
  BTN_MIDDLE,
  BTN_RIGHT,
  BTN_SIDE,
  decodeVirtioInputEvent,
  EV_ABS,
  EV_KEY,
  EV_LED,
  EV_REL,
  EV_REP,
  EV_SYN,
  encodeEvdevBits,
  encodeVirtioInputAbsInfo,
  encodeVirtioInputDevIds,
  encodeVirtioInputEvent,
  LED_CAPSL,
  LED_NUML,
  LED_SCROLLL,
  REL_HWHEEL,
  REL_WHEEL,
  REP_DELAY,
  REP_PERIOD,
  SYN_REPORT,
  VIRTIO_ID_INPUT,
  VIRTIO_INPUT_CFG_ABS_INFO,
  VIRTIO_INPUT_CFG_EV_BITS,
  VIRTIO_INPUT_CFG_ID_DEVIDS,
  VIRTIO_INPUT_CFG_ID_NAME,
  VIRTIO_INPUT_CFG_ID_SERIAL,
  VIRTIO_INPUT_CONFIG_BYTES,
  VIRTIO_INPUT_CONFIG_UNION,
  VIRTIO_INPUT_EVENT_BYTES,
  type VirtioInputEvent,
} from '../../../protocols/virtio/mod.ts';
import { StateReader } from '../../state/read_state.ts';
import type { StateValue } from '../../state/state.ts';
import type { KeyboardSink, TabletSink } from '../backends.ts';
import { VirtioDevice, type VirtioDeviceOptions } from './device.ts';
import type { VirtQueue } from './queue.ts';

const EVENT_QUEUE = 0;
/** Events that wait for the guest's buffers; above it only the newest state of each key and axis is kept */
const MAX_WAITING = 1024;
const BUS_VIRTUAL = 0x06;
const VENDOR = 0x0627;
/** Largest coordinate of the tablet */
const ABS_MAX = 32767;

const SYNC: VirtioInputEvent = { type: EV_SYN, code: SYN_REPORT, value: 0 };

/** What an input device says of itself, by event type */
interface InputShape {
  readonly name: string;
  readonly product: number;
  readonly bits: ReadonlyMap<number, readonly number[]>;
}

/** Input device (virtio 1.2 §5.8): events out of a bounded queue, in whole reports. */
abstract class VirtioInput extends VirtioDevice {
  readonly #shape: InputShape;
  #select = 0;
  #subsel = 0;
  #waiting: VirtioInputEvent[] = [];

  constructor(options: VirtioDeviceOptions, shape: InputShape) {
    super(options, {
      name: shape.name,
      virtioId: VIRTIO_ID_INPUT,
      features: 0n,
      queues: [
        { maxSize: 64, maxChainBytes: 4096 },
        { maxSize: 64, maxChainBytes: 4096 },
      ],
    });
    this.#shape = shape;
  }

  /** Queues one report: the events and the sync that ends it. Without a driver there is nobody to tell. */
  protected send(...events: VirtioInputEvent[]): void {
    if (!this.driverReady) return;
    // A guest that takes nothing gets the newest state later, not a flood
    if (this.#waiting.length + events.length + 1 > MAX_WAITING) this.#waiting = newestState(this.#waiting);
    this.#waiting.push(...events, SYNC);
    this.notify(EVENT_QUEUE);
  }

  protected config(): Uint8Array {
    const bytes = new Uint8Array(VIRTIO_INPUT_CONFIG_BYTES);
    const value = this.#configValue();
    bytes[0] = this.#select;
    bytes[1] = this.#subsel;
    bytes[2] = value.length;
    bytes.set(value, VIRTIO_INPUT_CONFIG_UNION);
    return bytes;
  }

  #configValue(): Uint8Array {
    switch (this.#select) {
      case VIRTIO_INPUT_CFG_ID_NAME:
        return ascii(`Caisson ${this.#shape.name}`);
      case VIRTIO_INPUT_CFG_ID_SERIAL:
        return ascii(this.stateName);
      case VIRTIO_INPUT_CFG_ID_DEVIDS:
        return encodeVirtioInputDevIds({
          bustype: BUS_VIRTUAL,
          vendor: VENDOR,
          product: this.#shape.product,
          version: 1,
        });
      case VIRTIO_INPUT_CFG_EV_BITS:
        return encodeEvdevBits(this.#shape.bits.get(this.#subsel) ?? []);
      case VIRTIO_INPUT_CFG_ABS_INFO:
        return this.#shape.bits.get(EV_ABS)?.includes(this.#subsel) === true
          ? encodeVirtioInputAbsInfo(0, ABS_MAX)
          : new Uint8Array(0);
      default:
        return new Uint8Array(0);
    }
  }

  override writeConfig(offset: number, size: number, value: number): void {
    // Drivers write the two selectors byte by byte, or both at once
    if (offset === 0) {
      this.#select = value & 0xff;
      if (size > 1) this.#subsel = (value >>> 8) & 0xff;
    } else if (offset === 1) this.#subsel = value & 0xff;
  }

  protected serve(queue: VirtQueue): void {
    if (queue.index === EVENT_QUEUE) {
      this.drain(
        queue,
        (chain) => {
          if (chain.writableBytes < VIRTIO_INPUT_EVENT_BYTES) {
            this.fail(`Cannot deliver an event: a buffer of ${chain.writableBytes} bytes`);
            return;
          }
          const event = this.#waiting.shift()!;
          chain.write(0, encodeVirtioInputEvent(event));
          this.finish(queue, chain, VIRTIO_INPUT_EVENT_BYTES);
        },
        () => this.#waiting.length > 0,
      );
      return;
    }
    this.drain(queue, (chain) => {
      for (let at = 0; at + VIRTIO_INPUT_EVENT_BYTES <= chain.readableBytes; at += VIRTIO_INPUT_EVENT_BYTES) {
        this.statusEvent(decodeVirtioInputEvent(chain.read(at, VIRTIO_INPUT_EVENT_BYTES)));
      }
      this.finish(queue, chain, 0);
    });
  }

  /** The guest set a lamp or a repeat rate. */
  protected statusEvent(_event: VirtioInputEvent): void {}

  protected override resetModel(): void {
    this.#select = 0;
    this.#subsel = 0;
    this.#waiting = [];
  }

  protected saveModel(): StateValue {
    return {
      select: this.#select,
      subsel: this.#subsel,
      waiting: this.#waiting.map((event) => ({ ...event })),
      ...this.saveControls(),
    };
  }
  protected saveControls(): { readonly [key: string]: StateValue } {
    return {};
  }

  protected prepareModel(reader: StateReader): () => void {
    const select = reader.integer('select', 0, 255);
    const subsel = reader.integer('subsel', 0, 255);
    const waiting = reader.list('waiting', MAX_WAITING, (item, path) => {
      const fields = new StateReader(path, item);
      return {
        type: fields.integer('type', 0, 0xffff),
        code: fields.integer('code', 0, 0xffff),
        value: fields.integer('value', -0x8000_0000, 0x7fff_ffff),
      };
    });
    const controls = this.prepareControls(reader);
    return () => {
      this.#select = select;
      this.#subsel = subsel;
      this.#waiting = waiting;
      controls();
    };
  }
  protected prepareControls(_reader: StateReader): () => void {
    return () => {};
  }
}

/** One report with the last state of each key and axis: no key stays down that is up, and motion is forgotten. */
function newestState(events: readonly VirtioInputEvent[]): VirtioInputEvent[] {
  const newest = new Map<string, VirtioInputEvent>();
  for (const event of events) {
    if (event.type === EV_KEY || event.type === EV_ABS) newest.set(`${event.type}.${event.code}`, event);
  }
  return [...newest.values(), SYNC];
}

function ascii(text: string): Uint8Array {
  return Uint8Array.from(text, (character) => character.charCodeAt(0) & 0x7f);
}

/** Codes 1..255 are a PC keyboard and its media keys; mouse buttons begin at 0x100 */
const KEY_MAX = 0xff;
const KEY_CODES = Array.from({ length: KEY_MAX }, (_, index) => index + 1);

export class VirtioKeyboard extends VirtioInput implements KeyboardSink {
  readonly leds: Observable<number>;
  readonly #leds = new BehaviorSubject(0);

  constructor(options: VirtioDeviceOptions) {
    super(options, {
      name: 'virtio-keyboard',
      product: 1,
      bits: new Map([
        [EV_KEY, KEY_CODES],
        [EV_REP, [REP_DELAY, REP_PERIOD]],
        [EV_LED, [LED_NUML, LED_CAPSL, LED_SCROLLL]],
      ]),
    });
    this.leds = this.#leds.asObservable();
  }

  key(evdevCode: number, down: boolean): void {
    if (!Number.isInteger(evdevCode) || evdevCode < 1 || evdevCode > KEY_MAX) return;
    this.send({ type: EV_KEY, code: evdevCode, value: down ? 1 : 0 });
  }

  protected override statusEvent({ type, code, value }: VirtioInputEvent): void {
    if (type !== EV_LED) return;
    const bit = LAMP_BITS.get(code);
    if (bit === undefined) return;
    const next = value !== 0 ? this.#leds.value | bit : this.#leds.value & ~bit;
    if (next !== this.#leds.value) this.#leds.next(next);
  }

  protected override resetModel(): void {
    super.resetModel();
    if (this.#leds.value !== 0) this.#leds.next(0);
  }
  protected override saveControls(): { readonly [key: string]: StateValue } {
    return { leds: this.#leds.value };
  }
  protected override prepareControls(reader: StateReader): () => void {
    const leds = reader.integer('leds', 0, 7);
    return () => this.#leds.next(leds);
  }
}
/** RFB's order: scroll, num, caps */
const LAMP_BITS: ReadonlyMap<number, number> = new Map([
  [LED_SCROLLL, 1],
  [LED_NUML, 2],
  [LED_CAPSL, 4],
]);

const BUTTONS = [BTN_LEFT, BTN_MIDDLE, BTN_RIGHT, BTN_SIDE, BTN_EXTRA] as const;

export class VirtioTablet extends VirtioInput implements TabletSink {
  #buttons = 0;

  constructor(options: VirtioDeviceOptions) {
    super(options, {
      name: 'virtio-tablet',
      product: 3,
      bits: new Map<number, readonly number[]>([
        [EV_KEY, BUTTONS],
        [EV_REL, [REL_WHEEL, REL_HWHEEL]],
        [EV_ABS, [ABS_X, ABS_Y]],
      ]),
    });
  }

  pointer(x: number, y: number, buttons: number): void {
    const events: VirtioInputEvent[] = [
      { type: EV_ABS, code: ABS_X, value: clamp(x) },
      { type: EV_ABS, code: ABS_Y, value: clamp(y) },
    ];
    for (const [bit, code] of BUTTONS.entries()) {
      const down = (buttons >> bit) & 1;
      if (down !== ((this.#buttons >> bit) & 1)) events.push({ type: EV_KEY, code, value: down });
    }
    this.#buttons = buttons & 0x1f;
    this.send(...events);
  }

  wheel(vertical: number, horizontal: number): void {
    const events: VirtioInputEvent[] = [];
    // evdev counts away from the user as positive, we count down as positive
    const [down, right] = [Math.trunc(vertical) | 0, Math.trunc(horizontal) | 0];
    if (down !== 0) events.push({ type: EV_REL, code: REL_WHEEL, value: -down | 0 });
    if (right !== 0) events.push({ type: EV_REL, code: REL_HWHEEL, value: right });
    if (events.length > 0) this.send(...events);
  }

  protected override resetModel(): void {
    super.resetModel();
    this.#buttons = 0;
  }
  protected override saveControls(): { readonly [key: string]: StateValue } {
    return { buttons: this.#buttons };
  }
  protected override prepareControls(reader: StateReader): () => void {
    const buttons = reader.integer('buttons', 0, 0x1f);
    return () => {
      this.#buttons = buttons;
    };
  }
}

function clamp(value: number): number {
  return Math.max(0, Math.min(ABS_MAX, Math.trunc(value) | 0));
}
