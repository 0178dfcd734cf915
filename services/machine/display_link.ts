import type { Subscription } from 'rxjs';
import type {
  CursorImage,
  DisplayEvent,
  DisplayHead,
  KeyboardSink,
  Rectangle,
  Surface,
  TabletSink,
} from '../../emulator/devices/backends.ts';
import {
  type CursorMessage,
  type DisplayMessage,
  decodeInputMessage,
  encodeDisplayMessage,
  isSurfaceSize,
  MAX_POINTER_SHAPE_SIDE,
  MAX_TILE_BYTES,
} from '../../protocols/roles/display.ts';
import type { Channel } from '../shared/channel.ts';

/** Damage is kept in squares of this side, in `pixels` */
const TILE = 64;
/** The shortest time between two batches, in `ms`: 60 Hz */
const FRAME_INTERVAL_MS = 16;

export interface DisplayLink {
  /** Lets go of every key and button that the console holds, and of the head. */
  close(): void;
}

/**
 * The machine's end of the display link: sends what changed while somebody watches, never more than the channel
 * takes, and applies the console's input after checking it. While the channel is full, damage is only marked:
 * a slow console gets the newest pixels later, not all pixels late.
 */
export function attachDisplay(
  channel: Channel,
  head: DisplayHead,
  keyboard: KeyboardSink | undefined,
  tablet: TabletSink | undefined,
): DisplayLink {
  const link = new MachineDisplayLink(channel, head, keyboard, tablet);
  link.start();
  return link;
}

class MachineDisplayLink implements DisplayLink {
  readonly #channel: Channel;
  readonly #head: DisplayHead;
  readonly #keyboard: KeyboardSink | undefined;
  readonly #tablet: TabletSink | undefined;
  readonly #subscriptions: Subscription[] = [];
  readonly #keysDown = new Set<number>();
  #pointer = { x: 0, y: 0, buttons: 0 };
  #surface: Surface | undefined;
  #columns = 0;
  #dirty = new Uint8Array(0);
  /** What waits for the next batch; the newest value only, so a guest cannot make a queue grow */
  #owed = { surface: false, tiles: false, refresh: false, leds: false, position: false };
  #owedCursor: CursorImage | undefined;
  #position = { x: 0, y: 0 };
  #leds = 0;
  #watching = false;
  #refreshSerial = 0;
  #sending = false;
  #timer: NodeJS.Timeout | undefined;
  #lastBatch = 0;
  #closed = false;

  constructor(channel: Channel, head: DisplayHead, keyboard: KeyboardSink | undefined, tablet: TabletSink | undefined) {
    this.#channel = channel;
    this.#head = head;
    this.#keyboard = keyboard;
    this.#tablet = tablet;
  }

  start(): void {
    this.#setSurface(this.#head.surface);
    this.#owed.surface = true;
    this.#owedCursor = this.#head.cursor;
    this.#subscriptions.push(this.#head.events.subscribe((event) => this.#onEvent(event)));
    if (this.#keyboard !== undefined) {
      this.#subscriptions.push(
        this.#keyboard.leds.subscribe((leds) => {
          this.#leds = leds & 7;
          this.#owed.leds = true;
          this.#schedule();
        }),
      );
    }
    this.#channel.onClose(() => this.close());
    this.#channel.onFrame((type, payload) => this.#onInput(type, payload));
    this.#schedule();
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    clearTimeout(this.#timer);
    for (const subscription of this.#subscriptions) subscription.unsubscribe();
    for (const code of this.#keysDown) this.#keyboard?.key(code, false);
    this.#keysDown.clear();
    if (this.#pointer.buttons !== 0) this.#tablet?.pointer(this.#pointer.x, this.#pointer.y, 0);
    this.#pointer.buttons = 0;
  }

  #onEvent(event: DisplayEvent): void {
    switch (event.kind) {
      case 'surface':
        this.#setSurface(event.surface);
        break;
      case 'damage':
        this.#damage(event.rectangle);
        break;
      case 'cursor':
        this.#owedCursor = event.cursor;
        this.#schedule();
        break;
      case 'cursor-position':
        this.#position = { x: event.x | 0, y: event.y | 0 };
        this.#owed.position = true;
        this.#schedule();
        break;
    }
  }

  /** A surface that does not hold together is shown as none: the guest chose its numbers. */
  #setSurface(surface: Surface | undefined): void {
    const usable =
      surface !== undefined &&
      isSurfaceSize(surface.width, surface.height) &&
      surface.strideBytes >= surface.width * 4 &&
      (surface.height - 1) * surface.strideBytes + surface.width * 4 <= surface.pixels.length;
    const next = usable ? surface : undefined;
    if (next?.width !== this.#surface?.width || next?.height !== this.#surface?.height) this.#owed.surface = true;
    this.#surface = next;
    this.#columns = Math.ceil((next?.width ?? 0) / TILE);
    this.#dirty = new Uint8Array(this.#columns * Math.ceil((next?.height ?? 0) / TILE));
    this.#damageAll();
  }

  #damageAll(): void {
    this.#dirty.fill(1);
    this.#owed.tiles = this.#dirty.length > 0;
    this.#schedule();
  }

  #damage(rectangle: Rectangle): void {
    const surface = this.#surface;
    if (surface === undefined) return;
    const left = Math.max(0, rectangle.x);
    const top = Math.max(0, rectangle.y);
    const right = Math.min(surface.width, rectangle.x + rectangle.width);
    const bottom = Math.min(surface.height, rectangle.y + rectangle.height);
    if (!(left < right && top < bottom)) return;
    const lastColumn = Math.floor((right - 1) / TILE);
    const lastRow = Math.floor((bottom - 1) / TILE);
    for (let row = Math.floor(top / TILE); row <= lastRow; row++) {
      this.#dirty.fill(1, row * this.#columns + Math.floor(left / TILE), row * this.#columns + lastColumn + 1);
    }
    this.#owed.tiles = true;
    this.#schedule();
  }

  #schedule(): void {
    if (this.#sending || this.#closed || this.#timer !== undefined) return;
    const { surface, refresh, leds, position, tiles } = this.#owed;
    const wanted =
      surface || refresh || leds || position || this.#owedCursor !== undefined || (tiles && this.#watching);
    if (!wanted) return;
    const wait = this.#lastBatch + FRAME_INTERVAL_MS - performance.now();
    this.#timer = setTimeout(() => void this.#sendBatch(), Math.max(0, wait));
  }

  async #sendBatch(): Promise<void> {
    this.#timer = undefined;
    this.#sending = true;
    this.#lastBatch = performance.now();
    this.#sendState();
    if (this.#owed.refresh || (this.#owed.tiles && this.#watching)) await this.#sendTiles();
    await this.#channel.drained();
    this.#sending = false;
    this.#schedule();
  }

  #sendState(): void {
    if (this.#owed.surface) {
      this.#owed.surface = false;
      this.#send({ type: 'surface', width: this.#surface?.width ?? 0, height: this.#surface?.height ?? 0 });
    }
    if (this.#owed.leds) {
      this.#owed.leds = false;
      this.#send({ type: 'leds', leds: this.#leds });
    }
    if (this.#owedCursor !== undefined) {
      const cursor = this.#owedCursor;
      this.#owedCursor = undefined;
      this.#send({ type: 'cursor', ...checkedCursor(cursor) });
    }
    if (this.#owed.position) {
      this.#owed.position = false;
      this.#send({ type: 'cursor-position', ...this.#position });
    }
  }

  async #sendTiles(): Promise<void> {
    const surface = this.#surface;
    const serial = this.#refreshSerial;
    // The marks go before the pixels are read: a change in between marks its tile again
    const batch = this.#dirty.slice();
    this.#dirty.fill(0);
    this.#owed.tiles = false;
    for (const rectangle of mergedRectangles(batch, this.#columns, surface)) {
      if (!this.#send({ type: 'tile', ...readTile(surface!, rectangle) })) await this.#channel.drained();
      // Replaced meanwhile: all of the new one is marked, and the batch that shows it answers the refresh
      if (this.#surface !== surface || this.#closed) return;
    }
    if (serial === this.#refreshSerial) this.#owed.refresh = false;
    this.#send({ type: 'frame-end', serial });
  }

  #send(message: DisplayMessage): boolean {
    const frame = encodeDisplayMessage(message);
    return this.#channel.send(frame.type, ...frame.parts);
  }

  /** A WireError from here ends the channel, not the machine. */
  #onInput(type: number, payload: Uint8Array): void {
    if (this.#closed) return;
    const message = decodeInputMessage(type, payload);
    switch (message.type) {
      case 'key':
        if (message.down) this.#keysDown.add(message.code);
        else this.#keysDown.delete(message.code);
        this.#keyboard?.key(message.code, message.down);
        break;
      case 'pointer':
        this.#pointer = { x: message.x, y: message.y, buttons: message.buttons };
        this.#tablet?.pointer(message.x, message.y, message.buttons);
        break;
      case 'wheel':
        this.#tablet?.wheel(message.vertical, message.horizontal);
        break;
      case 'resize':
        this.#head.requestSize(message.width, message.height);
        break;
      case 'refresh':
        this.#refreshSerial = message.serial;
        this.#owed.refresh = true;
        this.#damageAll();
        break;
      case 'watch':
        this.#watching = message.watching;
        this.#schedule();
        break;
    }
  }
}

/** Marked tiles as rectangles of one message each: runs along a row of tiles. */
function* mergedRectangles(marks: Uint8Array, columns: number, surface: Surface | undefined): Generator<Rectangle> {
  if (surface === undefined || columns === 0) return;
  const rows = marks.length / columns;
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      if (marks[row * columns + column] === 0) continue;
      let end = column + 1;
      while (end < columns && marks[row * columns + end] !== 0) end++;
      const x = column * TILE;
      const y = row * TILE;
      const width = Math.min(end * TILE, surface.width) - x;
      const height = Math.min(y + TILE, surface.height) - y;
      const rowsPerMessage = Math.max(1, Math.floor(MAX_TILE_BYTES / (width * 4)));
      for (let done = 0; done < height; done += rowsPerMessage) {
        yield { x, y: y + done, width, height: Math.min(rowsPerMessage, height - done) };
      }
      column = end;
    }
  }
}

/** Packs rows into memory of our own: the guest writes on while the channel sends. */
function readTile(surface: Surface, rectangle: Rectangle) {
  const rowBytes = rectangle.width * 4;
  const pixels = new Uint8Array(rowBytes * rectangle.height);
  for (let row = 0; row < rectangle.height; row++) {
    const start = (rectangle.y + row) * surface.strideBytes + rectangle.x * 4;
    pixels.set(surface.pixels.subarray(start, start + rowBytes), row * rowBytes);
  }
  return { ...rectangle, pixels };
}

/** Hidden when its numbers do not hold together. */
function checkedCursor(cursor: CursorImage): CursorMessage {
  const { width, height, hotX, hotY, pixels } = cursor;
  const side = (value: number) => Number.isInteger(value) && value >= 0 && value <= MAX_POINTER_SHAPE_SIDE;
  if (!side(width) || !side(height) || pixels.length !== width * height * 4) {
    return { width: 0, height: 0, hotX: 0, hotY: 0, pixels: new Uint8Array(0) };
  }
  return { width, height, hotX: clamp(hotX, width), hotY: clamp(hotY, height), pixels: pixels.slice() };
}

function clamp(value: number, size: number): number {
  return Math.max(0, Math.min(Math.trunc(value) || 0, Math.max(0, size - 1)));
}
