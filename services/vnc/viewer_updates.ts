import {
  type Area,
  COMPRESSION_LEVEL_FIRST,
  COMPRESSION_LEVEL_LAST,
  clipRegion,
  Encoding,
  encodeAbsolutePointer,
  encodeAcknowledgement,
  encodeCursor,
  encodeDesktopName,
  encodeDesktopSize,
  encodeExtendedDesktopSize,
  encodeLedState,
  encodeRectangleHeader,
  encodeServerFence,
  encodeUpdateHeader,
  encodeVmwareLedState,
  FenceFlag,
  type PixelPacker,
  type RequestedRegion,
  ResizeReason,
  ResizeStatus,
  zrlePayload,
} from '../../protocols/rfb/mod.ts';
import { DamageMap } from './damage.ts';
import type { Display, DisplayListener } from './display.ts';
import { type EncodingChoice, encodeArea, type PictureEncoding } from './encoder.ts';

/** The shortest time between two updates, in `ms`: 60 Hz */
const FRAME_INTERVAL_MS = 16;
/** The same right after input: an echo should not wait for the frame clock, a flood of keys must not outrun it */
const EXPEDITED_INTERVAL_MS = 4;
/** Pixels of one rectangle: about 2 ms of work, so that a full frame does not hold up everybody else */
const RECTANGLE_PIXELS = 1 << 17;
/** Updates that a client with fences may have unanswered: one on the wire, one being drawn */
const MAX_UNANSWERED_FENCES = 2;
/** A fence that is not answered in this time no longer counts, in `ms`: some viewers drop them while minimised */
const FENCE_PATIENCE_MS = 2000;
/** Encoding gives way to everybody else after this, in `ms` */
const WORK_SLICE_MS = 8;
const DEFAULT_LEVEL = 2;
const MAX_LEVEL = 6;

/** The viewer's connection, as far as updates need it. */
export interface UpdateSink {
  /** Everything written so far has left this process */
  readonly drained: boolean;
  write(parts: readonly Uint8Array[]): void;
  /** A session ends because of an error of ours */
  fail(error: Error): void;
  /** Called when an update is on its way */
  updateSent(): void;
}

/**
 * What one viewer gets to see, and when: only when it asked (or switched on continuous updates), only when all
 * before has left, at most 60 times a second. What changes meanwhile is merged as damage, never queued as frames.
 */
export class ViewerUpdates implements DisplayListener {
  readonly #display: Display;
  readonly #sink: UpdateSink;
  readonly #damage = new DamageMap();
  #encodings: ReadonlySet<number> = new Set();
  #choice: EncodingChoice;
  /** What the viewer believes the framebuffer's size to be */
  #width: number;
  #height: number;
  #request: RequestedRegion | undefined;
  #continuous: RequestedRegion | undefined;
  #extras = { cursor: false, leds: false, name: false };
  readonly #acknowledgements = new Set<number>();
  #sizeReply: { reason: number; status: number } | undefined;
  #resizeAsked = false;
  #zlibStarted = false;
  #sending = false;
  #closed = false;
  #timer: NodeJS.Timeout | undefined;
  #lastUpdate = 0;
  #expedite = false;
  #fences: { serial: number; sent: number }[] = [];
  #fenceSerial = 0;
  /** Updates sent, for measurements and tests */
  updates = 0;

  constructor(display: Display, sink: UpdateSink, packer: PixelPacker) {
    this.#display = display;
    this.#sink = sink;
    this.#width = display.width;
    this.#height = display.height;
    this.#damage.resize(display.width, display.height);
    this.#choice = { encoding: Encoding.raw, level: DEFAULT_LEVEL, packer };
  }

  /** The framebuffer that this viewer draws on, in `pixels` */
  get width(): number {
    return this.#width;
  }
  get height(): number {
    return this.#height;
  }
  /** True while an update is being made: format and encodings must not change under it */
  get sending(): boolean {
    return this.#sending;
  }

  /** Before the viewer was told any size: it will be told the current one. */
  adoptSize(): void {
    this.#width = this.#display.width;
    this.#height = this.#display.height;
    this.#damage.resize(this.#width, this.#height);
  }

  close(): void {
    this.#closed = true;
    clearTimeout(this.#timer);
  }

  setFormat(packer: PixelPacker): void {
    this.#choice = { ...this.#choice, packer };
    this.#damage.addAll();
    this.#extras.cursor = true;
  }

  setEncodings(encodings: readonly number[]): void {
    const before = this.#encodings;
    this.#encodings = new Set(encodings);
    const isNew = (encoding: number) => this.#encodings.has(encoding) && !before.has(encoding);
    const preferred = encodings.find((e): e is PictureEncoding => e === Encoding.zrle || e === Encoding.raw);
    const levels = encodings.filter((e) => e >= COMPRESSION_LEVEL_FIRST && e <= COMPRESSION_LEVEL_LAST);
    const asked = levels.length > 0 ? levels[0]! - COMPRESSION_LEVEL_FIRST : DEFAULT_LEVEL;
    const level = Math.min(MAX_LEVEL, Math.max(1, asked));
    this.#choice = { ...this.#choice, encoding: preferred ?? Encoding.raw, level };
    for (const encoding of [
      Encoding.qemuExtendedKeyEvent,
      Encoding.extendedMouseButtons,
      Encoding.qemuPointerMotionChange,
    ]) {
      if (isNew(encoding)) this.#acknowledgements.add(encoding);
    }
    if (isNew(Encoding.qemuLedState) || isNew(Encoding.vmwareLedState)) this.#extras.leds = true;
    if ([Encoding.cursor, Encoding.cursorWithAlpha, Encoding.vmwareCursor].some(isNew)) this.#extras.cursor = true;
    if (isNew(Encoding.extendedDesktopSize)) this.#sizeReply ??= { reason: ResizeReason.server, status: 0 };
    this.#poke();
  }

  request(region: RequestedRegion, incremental: boolean): void {
    if (!incremental) {
      const asked = clipRegion(region, this.#display.width, this.#display.height);
      if (asked !== undefined) this.#damage.add(asked);
      // The extension asks for the layout with every full request
      this.#sizeReply ??= { reason: ResizeReason.server, status: 0 };
    }
    this.#request = this.#request === undefined ? region : union(this.#request, region);
    this.#poke();
  }

  setContinuous(region: RequestedRegion | undefined): void {
    this.#continuous = region;
    this.#poke();
  }

  /** The viewer did something: the answer should not wait for the frame clock. */
  inputCame(): void {
    this.#expedite = true;
  }

  fenceAnswered(payload: Uint8Array): void {
    if (payload.length !== 4) return; // the announcement's, or not ours
    const serial = new DataView(payload.buffer, payload.byteOffset).getUint32(0);
    if (this.#fences.length >= MAX_UNANSWERED_FENCES) {
      clearTimeout(this.#timer);
      this.#timer = undefined;
    }
    this.#fences = this.#fences.filter((fence) => fence.serial > serial);
    this.#poke();
  }

  /** All that was written has left. */
  sinkDrained(): void {
    this.#poke();
  }

  /** This viewer asked the guest for a size: the change that follows is its own. */
  resizeAsked(): void {
    this.#resizeAsked = true;
  }

  /** Answers a SetDesktopSize that changes nothing. */
  resizeAnswered(status: number): void {
    this.#resizeAsked = false;
    this.#sizeReply = { reason: ResizeReason.thisClient, status };
    this.#poke();
  }

  resized(): void {
    this.#damage.resize(this.#display.width, this.#display.height);
    const reason = this.#resizeAsked ? ResizeReason.thisClient : ResizeReason.server;
    this.#resizeAsked = false;
    this.#sizeReply = { reason, status: ResizeStatus.ok };
  }
  damaged(area: Area): void {
    this.#damage.add(area);
  }
  frameEnded(): void {
    this.#poke();
  }
  cursorChanged(): void {
    this.#extras.cursor = true;
    this.#poke();
  }
  ledsChanged(): void {
    this.#extras.leds = true;
    this.#poke();
  }
  nameChanged(): void {
    this.#extras.name = true;
    this.#poke();
  }

  get #resizable(): boolean {
    return this.#encodings.has(Encoding.extendedDesktopSize) || this.#encodings.has(Encoding.desktopSize);
  }

  get #sizeDiffers(): boolean {
    return this.#width !== this.#display.width || this.#height !== this.#display.height;
  }

  /** What may be sent now: the viewer's wish, inside both its framebuffer and ours. */
  #region(): Area | undefined {
    const wish = this.#continuous ?? this.#request;
    if (wish === undefined) return undefined;
    const joined = this.#request === undefined ? wish : union(wish, this.#request);
    return clipRegion(joined, Math.min(this.#width, this.#display.width), Math.min(this.#height, this.#display.height));
  }

  #hasNews(): boolean {
    if (this.#sizeDiffers && this.#resizable) return true;
    const { cursor, leds, name } = this.#extras;
    if (cursor || leds || name || this.#acknowledgements.size > 0 || this.#sizeReply !== undefined) {
      if (this.#extraRectangles(false).length > 0) return true;
    }
    const region = this.#region();
    return region !== undefined && this.#damage.touches(region);
  }

  #mayStart(): boolean {
    if (this.#closed || this.#sending || !this.#sink.drained) return false;
    if (this.#request === undefined && this.#continuous === undefined) return false;
    const now = performance.now();
    this.#fences = this.#fences.filter((fence) => now - fence.sent < FENCE_PATIENCE_MS);
    return this.#fences.length < MAX_UNANSWERED_FENCES;
  }

  #poke(): void {
    if (this.#closed || this.#sending) return;
    if (this.#timer !== undefined && !this.#expedite) return;
    if (!this.#mayStart()) {
      // A viewer that leaves its fences unanswered is looked at again; any other wait ends with an event
      if (this.#fences.length >= MAX_UNANSWERED_FENCES) this.#setTimer(FENCE_PATIENCE_MS);
      return;
    }
    if (!this.#hasNews()) return;
    const interval = this.#expedite ? EXPEDITED_INTERVAL_MS : FRAME_INTERVAL_MS;
    this.#setTimer(this.#lastUpdate + interval - performance.now());
  }

  #setTimer(wait: number): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(
      () => {
        this.#timer = undefined;
        if (!this.#mayStart() || !this.#hasNews()) return;
        this.#send().catch((error: Error) => this.#sink.fail(error));
      },
      Math.max(0, wait),
    );
  }

  async #send(): Promise<void> {
    this.#sending = true;
    this.#lastUpdate = performance.now();
    this.#expedite = false;
    try {
      const parts = this.#sizeDiffers && this.#resizable ? this.#resizeUpdate() : await this.#pictureUpdate();
      if (this.#closed) return;
      this.updates++;
      if (this.#encodings.has(Encoding.fence)) parts.push(this.#fence());
      this.#sink.write(parts);
    } finally {
      this.#sending = false;
    }
    if (!this.#closed) this.#sink.updateSent();
    this.#poke();
  }

  /** A new size goes alone: what follows it is drawn on the new framebuffer. */
  #resizeUpdate(): Uint8Array[] {
    this.#request = undefined;
    this.#width = this.#display.width;
    this.#height = this.#display.height;
    this.#damage.addAll();
    const reply = this.#sizeReply ?? { reason: ResizeReason.server, status: ResizeStatus.ok };
    this.#sizeReply = undefined;
    return [encodeUpdateHeader(1), this.#sizeRectangle(reply.reason, reply.status)];
  }

  async #pictureUpdate(): Promise<Uint8Array[]> {
    const region = this.#region();
    this.#request = undefined;
    const choice = this.#choice;
    const picture = { width: this.#display.width, height: this.#display.height, pixels: this.#display.pixels };
    const rectangles = this.#extraRectangles(true);
    const areas = region === undefined ? [] : this.#damage.take(region, RECTANGLE_PIXELS);
    const parts: Uint8Array[] = [];
    for (const rectangle of rectangles) parts.push(rectangle);
    let count = rectangles.length;
    let sliceStart = performance.now();
    for (const whole of areas) {
      // Whole squares may reach beyond a viewer whose framebuffer cannot follow ours
      const area = clipRegion(whole, this.#width, this.#height);
      if (area === undefined) continue;
      if (performance.now() - sliceStart > WORK_SLICE_MS) {
        await new Promise((resolve) => setImmediate(resolve));
        sliceStart = performance.now();
      }
      // After a resize the cache belongs to another picture; this update still shows the old one
      const cache = this.#display.pixels === picture.pixels ? this.#display.cache : undefined;
      const bytes = await encodeArea(picture, area, choice, cache);
      parts.push(encodeRectangleHeader(area, choice.encoding));
      if (choice.encoding === Encoding.zrle) {
        parts.push(zrlePayload(bytes, !this.#zlibStarted));
        this.#zlibStarted = true;
      } else {
        parts.push(bytes);
      }
      count++;
    }
    return [encodeUpdateHeader(count), ...parts];
  }

  /** Pseudo rectangles that are owed; `take` also marks them as paid. */
  #extraRectangles(take: boolean): Uint8Array[] {
    const out: Uint8Array[] = [];
    const has = (encoding: number) => this.#encodings.has(encoding);
    for (const encoding of this.#acknowledgements) {
      out.push(
        encoding === Encoding.qemuPointerMotionChange ? encodeAbsolutePointer() : encodeAcknowledgement(encoding),
      );
    }
    if (this.#sizeReply !== undefined && has(Encoding.extendedDesktopSize) && !this.#sizeDiffers) {
      out.push(this.#sizeRectangle(this.#sizeReply.reason, this.#sizeReply.status));
    }
    if (this.#extras.leds) {
      if (has(Encoding.qemuLedState)) out.push(encodeLedState(this.#display.leds));
      else if (has(Encoding.vmwareLedState)) out.push(encodeVmwareLedState(this.#display.leds));
    }
    if (this.#extras.name && has(Encoding.desktopName)) out.push(encodeDesktopName(this.#display.name));
    if (this.#extras.cursor) {
      const cursor = encodeCursor(this.#display.cursor, this.#encodings, this.#choice.packer);
      if (cursor !== undefined) out.push(cursor);
    }
    if (take) {
      this.#acknowledgements.clear();
      this.#extras = { cursor: false, leds: false, name: false };
      this.#sizeReply = undefined;
    }
    return out;
  }

  #sizeRectangle(reason: number, status: number): Uint8Array {
    const { width, height } = this.#display;
    if (!this.#encodings.has(Encoding.extendedDesktopSize)) return encodeDesktopSize(width, height);
    return encodeExtendedDesktopSize(width, height, [{ id: 0, x: 0, y: 0, width, height, flags: 0 }], reason, status);
  }

  #fence(): Uint8Array {
    const serial = ++this.#fenceSerial >>> 0;
    this.#fences.push({ serial, sent: performance.now() });
    const payload = new Uint8Array(4);
    new DataView(payload.buffer).setUint32(0, serial);
    return encodeServerFence((FenceFlag.request | FenceFlag.blockBefore) >>> 0, payload);
  }
}

function union(a: RequestedRegion, b: RequestedRegion): RequestedRegion {
  const x = Math.min(a.x, b.x);
  const y = Math.min(a.y, b.y);
  return {
    x,
    y,
    width: Math.max(a.x + a.width, b.x + b.width) - x,
    height: Math.max(a.y + a.height, b.y + b.height) - y,
  };
}
