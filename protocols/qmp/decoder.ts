import { WireError } from '../bytes/mod.ts';
import { MAX_DEPTH, MAX_MESSAGE_BYTES } from './limits.ts';

export type QmpFrame =
  /** The bytes of one JSON value, not parsed yet */
  | { readonly kind: 'message'; readonly bytes: Uint8Array }
  /** What cannot become a message; the stream goes on after it */
  | { readonly kind: 'error'; readonly text: string };

const LF = 0x0a;
const CR = 0x0d;
const TAB = 0x09;
const SPACE = 0x20;
const DOUBLE_QUOTE = 0x22;
const SINGLE_QUOTE = 0x27;
const BACKSLASH = 0x5c;
const OPEN_BRACKET = 0x5b;
const CLOSE_BRACKET = 0x5d;
const OPEN_BRACE = 0x7b;
const CLOSE_BRACE = 0x7d;

type State =
  /** Between messages */
  | 'idle'
  /** Inside a list or object, outside texts */
  | 'structure'
  | 'text'
  /** After a backslash in a text */
  | 'escape'
  /** A scalar or nonsense, up to the end of its line */
  | 'line'
  /** After an error: drop everything up to the end of the line */
  | 'skip';

/**
 * Cuts a client's bytes into JSON values. QMP has no framing but the JSON itself (qmp-spec §2.1): an object ends
 * where its braces close, whether or not a line ends there. After an error the rest of that line is dropped.
 * Any split of the stream gives the same frames; buffered bytes and depth are capped.
 */
export class QmpDecoder {
  readonly #maxBytes: number;
  readonly #maxDepth: number;
  #state: State = 'idle';
  #depth = 0;
  #quote = 0;
  #buffer: Uint8Array<ArrayBuffer> = new Uint8Array(1024);
  #length = 0;

  constructor(options: { maxMessageBytes?: number; maxDepth?: number } = {}) {
    this.#maxBytes = options.maxMessageBytes ?? MAX_MESSAGE_BYTES;
    this.#maxDepth = options.maxDepth ?? MAX_DEPTH;
  }

  /** The frames that are complete now. */
  push(chunk: Uint8Array): QmpFrame[] {
    const frames: QmpFrame[] = [];
    for (const byte of chunk) {
      const frame = this.#step(byte);
      if (frame !== undefined) frames.push(frame);
    }
    return frames;
  }

  /** The stream ended. @throws WireError in the middle of a message */
  end(): void {
    if (this.#state !== 'idle' && this.#state !== 'skip') {
      throw new WireError('ERR_WIRE_TRUNCATED', 'Cannot read a QMP message: the stream ended inside it');
    }
  }

  #step(byte: number): QmpFrame | undefined {
    switch (this.#state) {
      case 'skip':
        if (byte === LF) this.#state = 'idle';
        return undefined;
      case 'idle':
        if (byte === SPACE || byte === LF || byte === CR || byte === TAB) return undefined;
        this.#length = 0;
        this.#depth = 0;
        if (byte === OPEN_BRACE || byte === OPEN_BRACKET) {
          this.#state = 'structure';
          return this.#structure(byte);
        }
        this.#state = 'line';
        return this.#take(byte);
      case 'line':
        return byte === LF ? this.#finish() : this.#take(byte);
      case 'structure':
        return this.#structure(byte);
      case 'text':
        // A raw control character cannot be in a text; it is how a client gets out of one (qmp-spec §2.4).
        if (byte < SPACE) return this.#fail('JSON parse error, control character in string', byte);
        if (byte === this.#quote) this.#state = 'structure';
        else if (byte === BACKSLASH) this.#state = 'escape';
        return this.#take(byte);
      case 'escape':
        if (byte < SPACE) return this.#fail('JSON parse error, control character in string', byte);
        this.#state = 'text';
        return this.#take(byte);
    }
  }

  #structure(byte: number): QmpFrame | undefined {
    switch (byte) {
      case OPEN_BRACE:
      case OPEN_BRACKET:
        if (this.#depth === this.#maxDepth) return this.#fail('JSON nesting depth limit exceeded', byte);
        this.#depth++;
        return this.#take(byte);
      case CLOSE_BRACE:
      case CLOSE_BRACKET:
        this.#depth--;
        return this.#take(byte) ?? (this.#depth === 0 ? this.#finish() : undefined);
      case DOUBLE_QUOTE:
      case SINGLE_QUOTE:
        this.#state = 'text';
        this.#quote = byte;
        return this.#take(byte);
      default:
        if (byte === 0xff || (byte < SPACE && byte !== LF && byte !== CR && byte !== TAB)) {
          return this.#fail('JSON parse error, stray control character', byte);
        }
        return this.#take(byte);
    }
  }

  #take(byte: number): QmpFrame | undefined {
    if (this.#length === this.#maxBytes) return this.#fail('JSON token size limit exceeded', byte);
    if (this.#length === this.#buffer.length) {
      const grown = new Uint8Array(Math.min(this.#buffer.length * 2, this.#maxBytes));
      grown.set(this.#buffer);
      this.#buffer = grown;
    }
    this.#buffer[this.#length++] = byte;
    return undefined;
  }

  #finish(): QmpFrame {
    const bytes = this.#buffer.slice(0, this.#length);
    this.#reset('idle');
    return { kind: 'message', bytes };
  }

  #fail(text: string, byte: number): QmpFrame {
    this.#reset(byte === LF ? 'idle' : 'skip');
    return { kind: 'error', text };
  }

  #reset(state: State): void {
    this.#state = state;
    this.#length = 0;
    if (this.#buffer.length > 1 << 16) this.#buffer = new Uint8Array(1024);
  }
}
