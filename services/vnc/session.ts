import type { Duplex } from 'node:stream';
import { FrameDecoder, WireError } from '../../protocols/bytes/mod.ts';
import {
  BGRX,
  type ClientMessage,
  clientMessageSize,
  decodeClientMessage,
  Encoding,
  encodeColourMap,
  encodeEndOfContinuousUpdates,
  encodeServerFence,
  encodeServerInit,
  FenceFlag,
  fenceReplyFlags,
  type HandshakeOptions,
  isValidLayout,
  MAX_CLIENT_MESSAGE_BYTES,
  PixelPacker,
  ResizeStatus,
  ServerHandshake,
  validatePixelFormat,
} from '../../protocols/rfb/mod.ts';
import { isSurfaceSize } from '../../protocols/roles/display.ts';
import type { Display } from './display.ts';
import type { ViewerInput } from './input.ts';
import { ViewerUpdates } from './viewer_updates.ts';

/** Messages handled in one turn of the event loop; the rest waits, so that a flood does not stop the others */
const MESSAGES_PER_TURN = 256;
/** Small answers (fences) that may wait for a client that does not read, in `bytes` */
const MAX_WAITING_REPLIES_BYTES = 64 << 10;
/** How long an asked-for size may take before the client is told that it was only forwarded, in `ms` */
const RESIZE_PATIENCE_MS = 1000;
/** Time for the last bytes to leave, in `ms` */
const CLOSE_GRACE_MS = 1000;

export interface SessionOptions {
  readonly display: Display;
  readonly input: ViewerInput;
  readonly handshake: HandshakeOptions;
  /** Input is parsed, counted and dropped */
  readonly viewOnly: boolean;
  readonly handshakeTimeoutMs: number;
  /** Gives a reason to refuse, by the share policy; called once, with the client's shared flag */
  readonly admit: (shared: boolean) => string | undefined;
  /** Undefined: the guest's size may not be changed from here */
  readonly requestSize: ((width: number, height: number) => void) | undefined;
  /** Resolves when the machine takes input again; undefined while it does */
  readonly inputBlocked: () => Promise<void> | undefined;
}

type SetDesktopSize = Extract<ClientMessage, { type: 'set-desktop-size' }>;

export type SessionState = 'handshake' | 'open' | 'closed';

/** One viewer, from its first byte to its last, over any stream. Whatever it sends, only it is closed. */
export class RfbSession {
  readonly #stream: Duplex;
  readonly #options: SessionOptions;
  readonly #handshake: ServerHandshake;
  readonly #decoder: FrameDecoder;
  readonly #updates: ViewerUpdates;
  readonly #deadline: NodeJS.Timeout;
  #state: SessionState = 'handshake';
  #negotiated = {
    extendedKeyEvent: false,
    extendedMouseButtons: false,
    fence: false,
    continuousUpdates: false,
    extendedDesktopSize: false,
  };
  /** A message that waits until the update that is being made has left */
  #held: ClientMessage | undefined;
  #motion: { x: number; y: number; buttons: number } | undefined;
  #waitingReplies = 0;
  #blocked = false;
  #resizeTimer: NodeJS.Timeout | undefined;
  #lastWish = '';
  #onClose: ((error: Error | undefined) => void) | undefined;
  #onOpen: (() => void) | undefined;
  /** Input messages dropped because of view-only */
  droppedInput = 0;

  constructor(stream: Duplex, options: SessionOptions) {
    this.#stream = stream;
    this.#options = options;
    this.#handshake = new ServerHandshake(options.handshake);
    this.#decoder = new FrameDecoder({
      name: 'RFB client',
      maxFrameBytes: MAX_CLIENT_MESSAGE_BYTES,
      maxBufferedBytes: MAX_CLIENT_MESSAGE_BYTES + (512 << 10),
      frameSize: (head) =>
        this.#state === 'handshake'
          ? { bytes: this.#handshake.expectedBytes }
          : clientMessageSize(head, this.#negotiated),
    });
    this.#updates = new ViewerUpdates(
      options.display,
      {
        get drained() {
          return stream.writableLength === 0;
        },
        write: (parts) => this.#write(parts),
        fail: (error) => this.close(error),
        updateSent: () => this.#goOn(),
      },
      new PixelPacker(BGRX),
    );
    this.#deadline = setTimeout(
      () => this.close(new WireError('ERR_WIRE_TIMEOUT', 'Cannot wait longer for the handshake')),
      options.handshakeTimeoutMs,
    );
    stream.on('data', (chunk: Uint8Array) => this.#receive(chunk));
    stream.on('error', (error) => this.close(error));
    stream.on('end', () => this.close());
    stream.on('close', () => this.close());
    stream.write(this.#handshake.greeting);
  }

  get state(): SessionState {
    return this.#state;
  }

  /** Updates sent so far */
  get updates(): number {
    return this.#updates.updates;
  }

  onOpen(handler: () => void): void {
    this.#onOpen = handler;
  }

  /** Called once; with an error when the client was wrong or too slow. */
  onClose(handler: (error: Error | undefined) => void): void {
    this.#onClose = handler;
  }

  close(error?: Error): void {
    if (this.#state === 'closed') return;
    this.#state = 'closed';
    clearTimeout(this.#deadline);
    clearTimeout(this.#resizeTimer);
    this.#updates.close();
    this.#options.display.removeListener(this.#updates);
    this.#stream.removeAllListeners('data');
    this.#stream.resume();
    this.#stream.end();
    setTimeout(() => this.#stream.destroy(), CLOSE_GRACE_MS).unref();
    this.#onClose?.(error);
  }

  #receive(chunk: Uint8Array): void {
    try {
      this.#decoder.push(chunk);
    } catch (error) {
      this.#fail(error);
      return;
    }
    this.#pump();
  }

  #pump(): void {
    if (this.#held !== undefined || this.#blocked || this.#state === 'closed') return;
    try {
      let budget = MESSAGES_PER_TURN;
      for (let frame = this.#decoder.next(); frame !== undefined; frame = this.#decoder.next()) {
        if (this.#state === 'handshake') this.#step(frame);
        else this.#handle(decodeClientMessage(frame, this.#negotiated));
        if (this.state === 'closed' || this.#held !== undefined) return;
        if (--budget === 0) {
          this.#block(new Promise((resolve) => setImmediate(resolve)));
          break;
        }
      }
      this.#flushMotion();
      const busy = this.#options.inputBlocked();
      if (busy !== undefined && !this.#blocked) this.#block(busy);
    } catch (error) {
      this.#fail(error);
    }
  }

  /** Reads no more until `until` resolves. */
  #block(until: Promise<void>): void {
    this.#blocked = true;
    this.#stream.pause();
    void until.then(() => {
      this.#blocked = false;
      this.#goOn();
    });
  }

  #goOn(): void {
    if (this.#state === 'closed' || this.#blocked) return;
    if (this.#held !== undefined) {
      if (this.#updates.sending) return;
      const held = this.#held;
      this.#held = undefined;
      try {
        this.#handle(held);
      } catch (error) {
        this.#fail(error);
        return;
      }
    }
    this.#stream.resume();
    this.#pump();
  }

  #fail(error: unknown): void {
    // Anything but a WireError is our own defect; it still ends only this viewer
    this.close(error instanceof Error ? error : new Error(String(error)));
  }

  #step(frame: Uint8Array): void {
    const step = this.#handshake.receive(frame);
    if (step.send.length > 0) this.#stream.write(step.send);
    if (step.state === 'failed') {
      this.close(step.failure);
      return;
    }
    if (step.state !== 'done') return;
    const refusal = this.#options.admit(step.shared === true);
    if (refusal !== undefined) {
      this.close(new WireError('ERR_WIRE_STATE', `Cannot admit this viewer: ${refusal}`));
      return;
    }
    clearTimeout(this.#deadline);
    this.#state = 'open';
    const { display } = this.#options;
    // A surface may have come since this session began
    if (this.#updates.width !== display.width || this.#updates.height !== display.height) this.#updates.adoptSize();
    this.#stream.write(encodeServerInit(display.width, display.height, BGRX, display.name), this.#afterWrite);
    display.addListener(this.#updates);
    this.#onOpen?.();
  }

  #handle(message: ClientMessage): void {
    if (message.type !== 'pointer') this.#flushMotion();
    switch (message.type) {
      case 'key':
        this.#updates.inputCame();
        if (this.#options.viewOnly) this.droppedInput++;
        else this.#options.input.key(message.down, message.keysym, message.scancode);
        break;
      case 'pointer':
        this.#pointer(message);
        break;
      case 'update-request':
        this.#updates.request(message, message.incremental);
        break;
      case 'cut-text':
        // The guest has no clipboard to put it in; the page types text instead
        break;
      case 'set-pixel-format':
      case 'set-encodings':
      case 'fence':
      case 'continuous-updates':
        // These change what an update looks like, or mark a place between updates
        if (this.#updates.sending) {
          this.#held = message;
          this.#stream.pause();
        } else {
          this.#reconfigure(message);
        }
        break;
      case 'set-desktop-size':
        this.#setDesktopSize(message);
        break;
    }
  }

  #reconfigure(
    message: Extract<ClientMessage, { type: 'set-pixel-format' | 'set-encodings' | 'fence' | 'continuous-updates' }>,
  ): void {
    switch (message.type) {
      case 'set-pixel-format': {
        const format = validatePixelFormat(message.format);
        this.#updates.setFormat(new PixelPacker(format));
        if (!format.trueColour) this.#reply(encodeColourMap());
        break;
      }
      case 'set-encodings':
        this.#setEncodings(message.encodings);
        break;
      case 'fence':
        if ((message.flags & FenceFlag.request) === 0) this.#updates.fenceAnswered(message.payload);
        else this.#reply(encodeServerFence(fenceReplyFlags(message.flags), message.payload));
        break;
      case 'continuous-updates':
        this.#updates.setContinuous(message.enable ? message : undefined);
        if (!message.enable) this.#reply(encodeEndOfContinuousUpdates());
        break;
    }
  }

  #setEncodings(encodings: readonly number[]): void {
    const has = (encoding: number) => encodings.includes(encoding);
    const before = this.#negotiated;
    // Once announced an extension stays: messages that use it may be on their way
    this.#negotiated = {
      extendedKeyEvent: before.extendedKeyEvent || has(Encoding.qemuExtendedKeyEvent),
      extendedMouseButtons: before.extendedMouseButtons || has(Encoding.extendedMouseButtons),
      fence: before.fence || has(Encoding.fence),
      continuousUpdates: before.continuousUpdates || has(Encoding.continuousUpdates),
      extendedDesktopSize: before.extendedDesktopSize || has(Encoding.extendedDesktopSize),
    };
    // The first message of a kind is how the server says that it knows it
    if (this.#negotiated.fence && !before.fence) {
      this.#reply(encodeServerFence(FenceFlag.request, new Uint8Array(0)));
    }
    if (this.#negotiated.continuousUpdates && !before.continuousUpdates) this.#reply(encodeEndOfContinuousUpdates());
    this.#updates.setEncodings(encodings);
  }

  #pointer(message: { readonly x: number; readonly y: number; readonly buttons: number }): void {
    this.#updates.inputCame();
    if (this.#options.viewOnly) {
      this.droppedInput++;
      return;
    }
    // Places on the way may be skipped, button edges never
    if (!this.#options.input.isMotion(message.buttons)) this.#flushMotion();
    this.#motion = message;
    if (!this.#options.input.isMotion(message.buttons)) this.#flushMotion();
  }

  #flushMotion(): void {
    const motion = this.#motion;
    if (motion === undefined) return;
    this.#motion = undefined;
    this.#options.input.pointer(motion.x, motion.y, motion.buttons, this.#updates.width, this.#updates.height);
  }

  #setDesktopSize(message: SetDesktopSize): void {
    const { display, requestSize } = this.#options;
    const verdict = this.#judgeSize(message);
    if (verdict !== undefined || requestSize === undefined) {
      this.#updates.resizeAnswered(verdict ?? ResizeStatus.prohibited);
      return;
    }
    const { width, height } = message;
    requestSize(width, height);
    this.#updates.resizeAsked();
    clearTimeout(this.#resizeTimer);
    this.#resizeTimer = setTimeout(() => {
      if (display.width !== width || display.height !== height) this.#updates.resizeAnswered(ResizeStatus.forwarded);
    }, RESIZE_PATIENCE_MS);
  }

  /** The status to answer at once; undefined: the guest is to be asked. */
  #judgeSize({ width, height, screens }: SetDesktopSize): number | undefined {
    const { display, requestSize, viewOnly } = this.#options;
    if (requestSize === undefined || viewOnly) return ResizeStatus.prohibited;
    if (!isValidLayout(width, height, screens)) return ResizeStatus.invalidLayout;
    if (!isSurfaceSize(width, height)) return ResizeStatus.outOfResources;
    if (width === display.width && height === display.height) return ResizeStatus.ok;
    const wish = `${width}x${height}`;
    // The guest had its chance and chose otherwise; some viewers would ask for ever
    if (wish === this.#lastWish) return ResizeStatus.prohibited;
    this.#lastWish = wish;
    return undefined;
  }

  #write(parts: readonly Uint8Array[]): void {
    if (this.#state === 'closed') return;
    this.#stream.cork();
    for (const [index, part] of parts.entries()) {
      if (index < parts.length - 1) this.#stream.write(part);
      else this.#stream.write(part, this.#afterWrite);
    }
    this.#stream.uncork();
  }

  #reply(bytes: Uint8Array): void {
    this.#stream.write(bytes, this.#afterWrite);
    if (this.#stream.writableLength === 0) {
      this.#waitingReplies = 0;
      return;
    }
    this.#waitingReplies += bytes.length;
    if (this.#waitingReplies > MAX_WAITING_REPLIES_BYTES && !this.#blocked) {
      this.#block(new Promise((resolve) => this.#stream.once('drain', resolve)));
    }
  }

  /** 'drain' comes only after a full buffer, this after every write. */
  readonly #afterWrite = (): void => {
    if (this.#stream.writableLength > 0) return;
    this.#waitingReplies = 0;
    this.#updates.sinkDrained();
  };
}
