import { endianness } from 'node:os';
import { WireError } from '../../protocols/bytes/mod.ts';
import type { Area } from '../../protocols/rfb/mod.ts';
import type { CursorMessage, DisplayMessage, TileMessage } from '../../protocols/roles/display.ts';
import { EncodeCache } from './encode_cache.ts';

/** Shown until the guest has set a surface, in `pixels` */
const PLACEHOLDER = { width: 640, height: 480 };

/** What a viewer's session wants to know. Called in the order in which things happened. */
export interface DisplayListener {
  resized(): void;
  damaged(area: Area): void;
  /** A batch is whole: now is a good time to send */
  frameEnded(): void;
  cursorChanged(): void;
  ledsChanged(): void;
  nameChanged(): void;
}

export const hiddenCursor: CursorMessage = { width: 0, height: 0, hotX: 0, hotY: 0, pixels: new Uint8Array(0) };

/**
 * The one shadow of the guest's framebuffer that all viewers share. It is our own memory: whatever a guest does to
 * its surface, no rectangle sent to a viewer can reach beyond it.
 */
export class Display {
  readonly #listeners = new Set<DisplayListener>();
  readonly cache: EncodeCache = new EncodeCache();
  #width = PLACEHOLDER.width;
  #height = PLACEHOLDER.height;
  /** Numbers 0x00RRGGBB */
  #pixels = new Uint32Array(PLACEHOLDER.width * PLACEHOLDER.height);
  #bytes = new Uint8Array(this.#pixels.buffer);
  #cursor: CursorMessage = hiddenCursor;
  #cursorPosition = { x: 0, y: 0 };
  #leds = 0;
  #hasSurface = false;
  #name: string;

  constructor(name: string) {
    // B G R X in memory order is 0xXXRRGGBB only where the low byte comes first
    if (endianness() !== 'LE') throw new Error('Cannot keep a framebuffer: this host is big-endian');
    this.#name = name;
  }

  get width(): number {
    return this.#width;
  }
  get height(): number {
    return this.#height;
  }
  /** Numbers 0xXXRRGGBB, rows of `width` */
  get pixels(): Uint32Array {
    return this.#pixels;
  }
  get cursor(): CursorMessage {
    return this.#cursor;
  }
  get cursorPosition(): { readonly x: number; readonly y: number } {
    return this.#cursorPosition;
  }
  /** Bit 0 scroll, 1 num, 2 caps */
  get leds(): number {
    return this.#leds;
  }
  /** False: the guest shows nothing yet, a black placeholder is shown instead */
  get hasSurface(): boolean {
    return this.#hasSurface;
  }
  get name(): string {
    return this.#name;
  }
  set name(name: string) {
    if (name === this.#name) return;
    this.#name = name;
    for (const listener of this.#listeners) listener.nameChanged();
  }

  addListener(listener: DisplayListener): void {
    this.#listeners.add(listener);
  }
  removeListener(listener: DisplayListener): void {
    this.#listeners.delete(listener);
  }

  /** Draws what the machine sent. @throws WireError when it does not fit what the machine said before */
  apply(message: DisplayMessage): void {
    switch (message.type) {
      case 'surface':
        this.#resize(message.width, message.height);
        break;
      case 'tile':
        this.#draw(message);
        break;
      case 'frame-end':
        for (const listener of this.#listeners) listener.frameEnded();
        break;
      case 'cursor':
        this.#cursor = message.pixels.length === 0 ? hiddenCursor : { ...message, pixels: message.pixels.slice() };
        for (const listener of this.#listeners) listener.cursorChanged();
        break;
      case 'cursor-position':
        this.#cursorPosition = { x: message.x, y: message.y };
        break;
      case 'leds':
        if (message.leds === this.#leds) break;
        this.#leds = message.leds;
        for (const listener of this.#listeners) listener.ledsChanged();
        break;
    }
  }

  #resize(width: number, height: number): void {
    this.#hasSurface = width > 0;
    this.#width = width || PLACEHOLDER.width;
    this.#height = height || PLACEHOLDER.height;
    this.#pixels = new Uint32Array(this.#width * this.#height);
    this.#bytes = new Uint8Array(this.#pixels.buffer);
    this.cache.clear();
    for (const listener of this.#listeners) listener.resized();
    if (!this.#hasSurface) for (const listener of this.#listeners) listener.frameEnded();
  }

  #draw(tile: TileMessage): void {
    const inside = tile.x < this.#width && tile.width <= this.#width - tile.x;
    if (!this.#hasSurface || !inside || tile.y >= this.#height || tile.height > this.#height - tile.y) {
      throw new WireError(
        'ERR_WIRE_VALUE',
        `Cannot draw a tile of ${tile.width}x${tile.height} at ${tile.x},${tile.y}: surface is ${this.#width}x${this.#height}`,
        { message: 'tile' },
      );
    }
    const rowBytes = tile.width * 4;
    for (let row = 0; row < tile.height; row++) {
      const target = ((tile.y + row) * this.#width + tile.x) * 4;
      this.#bytes.set(tile.pixels.subarray(row * rowBytes, (row + 1) * rowBytes), target);
    }
    this.cache.clear();
    const area = { x: tile.x, y: tile.y, width: tile.width, height: tile.height };
    for (const listener of this.#listeners) listener.damaged(area);
  }
}
