import { keysymToKey, scancodeToEvdev } from '../../protocols/rfb/mod.ts';
import { type InputMessage, POINTER_RANGE } from '../../protocols/roles/display.ts';

const KEY_LEFTSHIFT = 42;
const KEY_RIGHTSHIFT = 54;
const LED_CAPS = 4;

/** RFB button bit → bit of the tablet: left, middle, right; back → side, forward → extra. */
const BUTTON_BITS: readonly (readonly [number, number])[] = [
  [0, 0],
  [1, 1],
  [2, 2],
  [7, 3],
  [8, 4],
];

/**
 * Joins what several viewers hold down: the guest has one keyboard. A key goes down with the first viewer that
 * presses it and up with the last that lets go.
 */
export class InputHub {
  readonly #send: (message: InputMessage) => void;
  readonly #leds: () => number;
  readonly #held = new Map<number, number>();
  readonly #viewers = new Set<ViewerInput>();

  /** `leds`: lamps that the guest has set, for letters under Caps Lock */
  constructor(send: (message: InputMessage) => void, leds: () => number) {
    this.#send = send;
    this.#leds = leds;
  }

  attach(): ViewerInput {
    const viewer = new ViewerInput(this);
    this.#viewers.add(viewer);
    return viewer;
  }

  detach(viewer: ViewerInput): void {
    viewer.releaseAll();
    this.#viewers.delete(viewer);
  }

  press(code: number): void {
    const holders = this.#held.get(code) ?? 0;
    this.#held.set(code, holders + 1);
    if (holders === 0) this.#send({ type: 'key', code, down: true });
  }

  release(code: number): void {
    const holders = this.#held.get(code) ?? 0;
    if (holders > 1) {
      this.#held.set(code, holders - 1);
    } else if (holders === 1) {
      this.#held.delete(code);
      this.#send({ type: 'key', code, down: false });
    }
  }

  /** Straight to the guest, past the counts: Shift around one synthesised character. */
  tap(code: number, down: boolean): void {
    this.#send({ type: 'key', code, down });
  }

  holds(code: number): boolean {
    return this.#held.has(code);
  }

  get capsLock(): boolean {
    return (this.#leds() & LED_CAPS) !== 0;
  }

  pointer(x: number, y: number): void {
    let buttons = 0;
    for (const viewer of this.#viewers) buttons |= viewer.buttons;
    this.#send({ type: 'pointer', x, y, buttons });
  }

  wheel(vertical: number, horizontal: number): void {
    this.#send({ type: 'wheel', vertical, horizontal });
  }
}

/** One viewer's keys and buttons, so that all of them can be let go when it leaves. */
export class ViewerInput {
  readonly #hub: InputHub;
  readonly #pressed = new Set<number>();
  /** What a keysym's press became, so that its release finds the same key */
  readonly #keysymKeys = new Map<number, number>();
  #rfbButtons = 0;
  #buttons = 0;
  #x = 0;
  #y = 0;

  constructor(hub: InputHub) {
    this.#hub = hub;
  }

  /** Tablet buttons, five bits */
  get buttons(): number {
    return this.#buttons;
  }

  /** A key event; the scancode wins where the client has one, the keysym is read as a US keyboard. */
  key(down: boolean, keysym: number, scancode: number): void {
    const code = scancodeToEvdev(scancode);
    if (code !== undefined) {
      if (down) this.#press(code);
      else this.#release(code);
    } else if (down) {
      this.#pressKeysym(keysym);
    } else {
      const pressed = this.#keysymKeys.get(keysym) ?? keysymToKey(keysym)?.evdev;
      this.#keysymKeys.delete(keysym);
      if (pressed !== undefined) this.#release(pressed);
    }
  }

  /** `x`, `y` in pixels of a framebuffer of `width` × `height`; `buttons` as RFB numbers them. */
  pointer(x: number, y: number, buttons: number, width: number, height: number): void {
    this.#x = scale(x, width);
    this.#y = scale(y, height);
    const edges = buttons & ~this.#rfbButtons;
    this.#rfbButtons = buttons;
    this.#buttons = 0;
    for (const [from, to] of BUTTON_BITS) if ((buttons & (1 << from)) !== 0) this.#buttons |= 1 << to;
    this.#hub.pointer(this.#x, this.#y);
    // Bits 3 to 6 are the wheel: each press is one detent, the release says nothing
    const vertical = ((edges >> 4) & 1) - ((edges >> 3) & 1);
    const horizontal = ((edges >> 6) & 1) - ((edges >> 5) & 1);
    if (vertical !== 0 || horizontal !== 0) this.#hub.wheel(vertical, horizontal);
  }

  /** True when a pointer event with these buttons changes nothing but the place. */
  isMotion(buttons: number): boolean {
    return buttons === this.#rfbButtons;
  }

  releaseAll(): void {
    for (const code of this.#pressed) this.#hub.release(code);
    this.#pressed.clear();
    this.#keysymKeys.clear();
    if (this.#buttons !== 0) {
      this.#buttons = 0;
      this.#hub.pointer(this.#x, this.#y);
    }
    this.#rfbButtons = 0;
  }

  #press(code: number): void {
    if (this.#pressed.has(code)) return; // the guest repeats keys itself
    this.#pressed.add(code);
    this.#hub.press(code);
  }

  #release(code: number): void {
    if (this.#pressed.delete(code)) this.#hub.release(code);
  }

  /** Shift is brought to what the character needs for the press, then back to what the viewers hold. */
  #pressKeysym(keysym: number): void {
    const key = keysymToKey(keysym);
    if (key === undefined || this.#pressed.has(key.evdev)) return;
    this.#keysymKeys.set(keysym, key.evdev);
    const held = [KEY_LEFTSHIFT, KEY_RIGHTSHIFT].filter((code) => this.#hub.holds(code));
    const letter = (keysym >= 0x41 && keysym <= 0x5a) || (keysym >= 0x61 && keysym <= 0x7a);
    const wanted = key.shift === undefined ? undefined : key.shift !== (letter && this.#hub.capsLock);
    if (wanted === true && held.length === 0) {
      this.#hub.tap(KEY_LEFTSHIFT, true);
      this.#press(key.evdev);
      this.#hub.tap(KEY_LEFTSHIFT, false);
    } else if (wanted === false && held.length > 0) {
      for (const code of held) this.#hub.tap(code, false);
      this.#press(key.evdev);
      for (const code of held) this.#hub.tap(code, true);
    } else {
      this.#press(key.evdev);
    }
  }
}

function scale(value: number, size: number): number {
  if (size <= 1) return 0;
  return Math.round((Math.min(value, size - 1) * POINTER_RANGE) / (size - 1));
}
