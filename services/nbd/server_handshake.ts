import type { Duplex } from 'node:stream';
import { FrameDecoder, WireError } from '../../protocols/bytes/mod.ts';
import {
  CLIENT_FLAGS_BYTES,
  decodeClientFlags,
  decodeOption,
  type ExportDescription,
  MAX_SKIPPED_OPTION_BYTES,
  type MetaContext,
  OPTION_HEADER_BYTES,
  optionFrameSize,
  type ServerNegotiation,
  type ServerNegotiationEvent,
  type ServerNegotiationStep,
  type ServerTlsMode,
  startServerNegotiation,
  stepServerNegotiation,
} from '../../protocols/nbd/mod.ts';
import { describeExport, type ExportClient, type ExportDirectory, type NbdExport } from './export_set.ts';

/** Chunks are fed to the decoder in pieces, so that its buffer bound is about options and not about reads */
const PIECE_BYTES = 64 * 1024;
/** A client that asks and does not read the answers is cut off here, in `bytes` */
const MAX_UNREAD_BYTES = 1 << 20;

/** What the handshake ended with. */
export interface Negotiated {
  readonly served: NbdExport;
  /** As the client was told, session flags included */
  readonly description: ExportDescription;
  readonly structured: boolean;
  readonly extended: boolean;
  readonly contexts: readonly MetaContext[];
  /** Bytes that came behind the handshake */
  readonly rest: readonly Uint8Array[];
}

export interface HandshakeEvents {
  /** Send `lastPlain`, do the server's end of TLS, and call secured(). Nothing of the stream may be read meanwhile */
  startTls(lastPlain: Uint8Array): void;
  done(negotiated: Negotiated): void;
  /** The stream is to end once what was written is out; `error` where the client is to blame */
  closed(error: WireError | undefined): void;
}

/** Drives the negotiation's state machine over one stream. The owner feeds it and is told the outcome once. */
export class ServerHandshake {
  #stream: Duplex;
  #client: ExportClient = { secure: false, peer: undefined };
  readonly #directory: ExportDirectory;
  readonly #events: HandshakeEvents;
  readonly #decoder: FrameDecoder;
  #state: ServerNegotiation;
  #chunks: Uint8Array[] = [];
  #served: NbdExport | undefined;
  /** Our own side is looking something up: the client has to wait */
  #waiting = false;
  #over = false;

  constructor(
    stream: Duplex,
    directory: ExportDirectory,
    events: HandshakeEvents,
    { tls = 'off', simpleOnly = false }: { readonly tls?: ServerTlsMode; readonly simpleOnly?: boolean } = {},
  ) {
    this.#stream = stream;
    this.#directory = directory;
    this.#events = events;
    const maxFrameBytes = OPTION_HEADER_BYTES + MAX_SKIPPED_OPTION_BYTES;
    this.#decoder = new FrameDecoder({
      name: 'NBD handshake',
      maxFrameBytes,
      maxBufferedBytes: maxFrameBytes + PIECE_BYTES,
      frameSize: (head) =>
        this.#state.phase === 'client-flags' ? { bytes: CLIENT_FLAGS_BYTES } : optionFrameSize(head),
    });
    const first = startServerNegotiation(tls, simpleOnly);
    this.#state = first.state;
    this.#send(first);
  }

  receive(chunk: Uint8Array): void {
    if (this.#over) return;
    this.#chunks.push(chunk);
    this.#run();
  }

  /** TLS is on: `stream` takes the old one's place, and `peer` is who the client has proven to be. */
  secured(stream: Duplex, peer: ExportClient['peer']): void {
    if (this.#over) return;
    this.#stream = stream;
    this.#client = { secure: true, peer };
    this.#waiting = false;
    this.#step({ kind: 'secured' });
  }

  /** Answers what is asked right now with ERR_SHUTDOWN and closes. */
  shutdown(): void {
    if (!this.#over) this.#step({ kind: 'shutdown' });
  }

  /** The stream is gone. */
  abandon(): void {
    this.#over = true;
    this.#chunks = [];
  }

  #run(): void {
    try {
      while (!this.#over && !this.#waiting) {
        const frame = this.#decoder.next();
        if (frame !== undefined) this.#onFrame(frame);
        else if (!this.#feed()) return;
      }
    } catch (error) {
      if (!(error instanceof WireError)) throw error;
      this.#end(error);
    }
  }

  #feed(): boolean {
    const chunk = this.#chunks.shift();
    if (chunk === undefined) return false;
    this.#decoder.push(chunk.subarray(0, PIECE_BYTES));
    if (chunk.length > PIECE_BYTES) this.#chunks.unshift(chunk.subarray(PIECE_BYTES));
    return true;
  }

  #onFrame(frame: Uint8Array): void {
    if (this.#state.phase === 'client-flags') this.#step({ kind: 'client-flags', flags: decodeClientFlags(frame) });
    else this.#step({ kind: 'option', option: decodeOption(frame) });
  }

  #step(event: ServerNegotiationEvent): void {
    const step = stepServerNegotiation(this.#state, event);
    this.#state = step.state;
    const { effect } = step;
    if (effect?.kind === 'starttls') {
      this.#startTls(step.out[0]!);
      return;
    }
    this.#send(step);
    switch (effect?.kind) {
      case undefined:
        return;
      case 'describe':
        void this.#lookUp(effect.name);
        return;
      case 'list':
        this.#step({ kind: 'listed', exports: this.#directory.list(this.#client) });
        return;
      case 'close':
        this.#end(effect.error);
        return;
      case 'transmit': {
        this.#over = true;
        this.#events.done({
          served: this.#served!,
          description: effect.export,
          structured: step.state.structured,
          extended: step.state.extended,
          contexts: effect.contexts,
          rest: [this.#decoder.drain(), ...this.#chunks],
        });
      }
    }
  }

  #startTls(acknowledgement: Uint8Array): void {
    let waiting = this.#decoder.buffered + this.#stream.readableLength;
    for (const chunk of this.#chunks) waiting += chunk.length;
    if (waiting > 0) {
      // A client cannot speak before our answer; whoever did wants its words to be taken for the client's inside TLS.
      this.#end(
        new WireError('ERR_WIRE_STATE', `Cannot start TLS: ${waiting} bytes of plain text behind NBD_OPT_STARTTLS`),
      );
      return;
    }
    this.#waiting = true;
    this.#events.startTls(acknowledgement);
  }

  async #lookUp(name: string): Promise<void> {
    this.#waiting = true;
    this.#stream.pause();
    let found: NbdExport | undefined;
    try {
      found = await this.#directory.open(name, this.#client);
    } catch {
      // Why an export does not open is for the directory's owner to log; to the client it does not exist.
      found = undefined;
    }
    if (this.#over) return;
    this.#waiting = false;
    this.#served = found;
    this.#step({ kind: 'described', export: found === undefined ? undefined : describeExport(found) });
    if (this.#over) return;
    this.#stream.resume();
    this.#run();
  }

  #send(step: ServerNegotiationStep): void {
    if (step.out.length === 0) return;
    this.#stream.cork();
    for (const bytes of step.out) this.#stream.write(bytes);
    this.#stream.uncork();
    if (this.#stream.writableLength > MAX_UNREAD_BYTES) {
      this.#end(new WireError('ERR_WIRE_LIMIT', 'Cannot queue more replies: the client does not read them'));
    }
  }

  #end(error: WireError | undefined): void {
    if (this.#over) return;
    this.abandon();
    this.#events.closed(error);
  }
}
