import type { Observable } from 'rxjs';

/** Where a guest's disk keeps its blocks. Offsets and lengths were checked against `sizeBytes` by the device. */
export interface BlockBackend {
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  /** In `bytes`, a power of two from 512 */
  readonly blockBytes: number;
  /** @throws BlockError */
  read(offset: number, into: Uint8Array): Promise<void>;
  /** `fua`: on stable storage before the promise resolves */
  write(offset: number, data: Uint8Array, options?: { fua?: boolean }): Promise<void>;
  flush(): Promise<void>;
  /** Absent where the backend cannot */
  discard?(offset: number, lengthBytes: number): Promise<void>;
  writeZeroes?(offset: number, lengthBytes: number, options?: { mayUnmap?: boolean }): Promise<void>;
}

/** The backend could not do it; the guest sees an I/O error, the machine lives. */
export class BlockError extends Error {
  override readonly name = 'BlockError';
  readonly code: 'EIO' | 'ENOSPC' | 'EPERM' | 'EINVAL' | 'ESHUTDOWN';
  constructor(code: BlockError['code'], text: string, options?: ErrorOptions) {
    super(text, options);
    this.code = code;
  }
}

/** A rectangle in pixels; inside the surface. */
export interface Rectangle {
  readonly x: number;
  readonly y: number;
  readonly width: number;
  readonly height: number;
}

/** What a display shows: 32 bits a pixel, bytes B G R X in memory order, rows of `strideBytes`. */
export interface Surface {
  readonly width: number;
  readonly height: number;
  readonly strideBytes: number;
  readonly pixels: Uint8Array;
}

export interface CursorImage {
  readonly width: number;
  readonly height: number;
  readonly hotX: number;
  readonly hotY: number;
  /** Bytes B G R A in memory order, premultiplied as the guest gave them; empty when hidden */
  readonly pixels: Uint8Array;
}

export type DisplayEvent =
  /** The surface was replaced: new size or new memory */
  | { readonly kind: 'surface'; readonly surface: Surface }
  | { readonly kind: 'damage'; readonly rectangle: Rectangle }
  | { readonly kind: 'cursor'; readonly cursor: CursorImage }
  | { readonly kind: 'cursor-position'; readonly x: number; readonly y: number };

/** One head of the guest's display. */
export interface DisplayHead {
  /** Undefined until the guest has set one */
  readonly surface: Surface | undefined;
  readonly cursor: CursorImage | undefined;
  readonly events: Observable<DisplayEvent>;
  /** Asks the guest for another size (virtio-gpu display-info event); it may ignore that */
  requestSize(width: number, height: number): void;
}

/** Keys as Linux evdev codes (KEY_A = 30). Unknown codes are ignored. */
export interface KeyboardSink {
  key(evdevCode: number, down: boolean): void;
  /** Lock-key lamps that the guest has set: bit 0 scroll, 1 num, 2 caps (RFB LED order) */
  readonly leds: Observable<number>;
}

/** An absolute pointer. `x`, `y` in 0..32767; `buttons` bit 0 left, 1 middle, 2 right, 3 side, 4 extra. */
export interface TabletSink {
  pointer(x: number, y: number, buttons: number): void;
  /** Wheel detents; up and left negative */
  wheel(vertical: number, horizontal: number): void;
}

/** A byte stream to and from the guest: a serial port or a virtio console. */
export interface CharacterPort {
  /** From the guest */
  readonly output: Observable<Uint8Array>;
  /** To the guest; gives how many bytes were taken, the rest must be offered again after `ready` */
  write(bytes: Uint8Array): number;
  /** Room for input again */
  readonly ready: Observable<void>;
  /**
   * True: whoever takes `output` has no room, and the guest waits as on a line with flow control. What was under way
   * still comes: at most a FIFO ring or one buffer of the guest.
   */
  holdOutput(held: boolean): void;
}
