import { WireError } from '../bytes/mod.ts';
import type { ControlKind } from './control.ts';

// The order of a session. Both ends hold every message, sent and received, against this table.
//
//   source                                        destination
//   Hello            ───────────────────────────▶
//                    ◀───────────────────────────  HelloAck
//   Manifest         ───────────────────────────▶  compares; nothing is touched yet
//                    ◀───────────────────────────  ManifestAck | Refuse
//   Begin            ───────────────────────────▶
//   PassBegin, records, PassEnd ────────────────▶  stores pages         ┐ as often as
//                    ◀───────────────────────────  PassAck              ┘ the source wants
//   (guest stands) StopSource ──────────────────▶
//   PassBegin, records, PassEnd ────────────────▶  the last pages (PassAck)
//   DeviceState…     ───────────────────────────▶  collects
//   Digest           ───────────────────────────▶  verifies RAM, decodes and prepares all devices
//                    ◀───────────────────────────  Ready
//   (disks released) Commit ────────────────────▶  takes the disks, applies, runs
//                    ◀───────────────────────────  Running
//
// Before Commit is sent the guest belongs to the source: any failure lets it run on there. From then on it belongs
// to the destination; only its Abort gives it back. When neither Running nor Abort comes, the source stays paused.

/** What travels: control messages, and page records between them */
export type SessionMessage = ControlKind | 'record';

/** Who sends a message of that kind; Abort is for both */
const SOURCE_SENDS: ReadonlySet<SessionMessage> = new Set([
  'hello',
  'manifest',
  'begin',
  'passBegin',
  'record',
  'passEnd',
  'stopSource',
  'deviceState',
  'digest',
  'commit',
]);

export type SessionPhase =
  | 'start'
  | 'hello'
  | 'greeted'
  | 'manifest'
  | 'accepted'
  | 'between'
  | 'pass'
  | 'stopped'
  | 'lastPass'
  | 'lastPassed'
  | 'devices'
  | 'digest'
  | 'ready'
  | 'committed'
  | 'done'
  | 'aborted';

const ABORT = { abort: 'aborted' } as const;

/** Phase × message → phase. A PassAck is late by nature: it is counted beside the table. */
const TABLE: { readonly [Phase in SessionPhase]: { readonly [Message in SessionMessage]?: SessionPhase } } = {
  start: { ...ABORT, hello: 'hello' },
  hello: { ...ABORT, helloAck: 'greeted' },
  greeted: { ...ABORT, manifest: 'manifest' },
  manifest: { ...ABORT, manifestAck: 'accepted', refuse: 'aborted' },
  accepted: { ...ABORT, begin: 'between' },
  between: { ...ABORT, passBegin: 'pass', stopSource: 'stopped' },
  pass: { ...ABORT, record: 'pass', passEnd: 'between' },
  stopped: { ...ABORT, passBegin: 'lastPass', deviceState: 'devices' },
  lastPass: { ...ABORT, record: 'lastPass', passEnd: 'lastPassed' },
  lastPassed: { ...ABORT, deviceState: 'devices' },
  devices: { ...ABORT, deviceState: 'devices', digest: 'digest' },
  digest: { ...ABORT, ready: 'ready' },
  ready: { ...ABORT, commit: 'committed' },
  committed: { ...ABORT, running: 'done' },
  done: {},
  aborted: {},
};

/** Where one end of a session stands. */
export class SessionState {
  readonly #end: 'source' | 'destination';
  #phase: SessionPhase = 'start';
  #unackedPasses = 0;

  constructor(end: 'source' | 'destination') {
    this.#end = end;
  }

  get phase(): SessionPhase {
    return this.#phase;
  }

  /** We send: a message out of order is our own bug. */
  sent(message: SessionMessage): void {
    const problem = this.#advance(message, this.#end);
    if (problem !== undefined) throw new Error(`Cannot send ${message} to the migration peer: ${problem}`);
  }

  /** @throws WireError ERR_WIRE_STATE: the peer sends a message that has no place here. */
  received(message: SessionMessage): void {
    const problem = this.#advance(message, this.#end === 'source' ? 'destination' : 'source');
    if (problem !== undefined) {
      throw new WireError('ERR_WIRE_STATE', `Cannot accept ${message} of the migration peer: ${problem}`, {
        message: 'migration control',
      });
    }
  }

  #advance(message: SessionMessage, sender: 'source' | 'destination'): string | undefined {
    if (message !== 'abort' && SOURCE_SENDS.has(message) !== (sender === 'source')) {
      return `the ${sender} does not send it`;
    }
    // After Commit the source has given the guest away and cannot take it back.
    if (message === 'abort' && sender === 'source' && this.#phase === 'committed') return 'the session is committed';
    if (message === 'passAck') {
      if (this.#unackedPasses === 0) return 'no pass waits for it';
      this.#unackedPasses--;
      return undefined;
    }
    const next = TABLE[this.#phase][message];
    if (next === undefined) return `the session is in phase ${this.#phase}`;
    if (message === 'ready' && this.#unackedPasses > 0) return 'a pass is not acknowledged';
    if (message === 'passEnd') this.#unackedPasses++;
    this.#phase = next;
    return undefined;
  }
}
