import type { TlsIdentity } from '../shared/mod.ts';
import { newCounters, type TransmissionCounters } from './command_runner.ts';
import type { NbdSessionSummary } from './server.ts';

/** Peers that are counted by name; what later ones do is counted together */
const MAX_PEERS = 1000;
const OTHERS = 'others';

/** A session that is there at the moment. */
export interface NbdSessionStatus {
  readonly id: number;
  /** Certificate's subject or PSK user where there is one, else the address; `unix` for UNIX sockets */
  readonly peer: string;
  readonly phase: 'handshake' | 'transmission';
  readonly exportName: string | undefined;
  /** Since it was accepted, in `ms` */
  readonly ageMs: number;
  readonly counters: Readonly<TransmissionCounters>;
  /** Requests that are worked on */
  readonly inFlight: number;
  /** Memory held for the client, in `bytes` */
  readonly heldBytes: number;
}

/** What the sessions of one peer did, those that are over and those that are not. */
export interface NbdPeerTotals extends TransmissionCounters {
  sessions: number;
  /** Sessions that ended because the client was wrong, late or gone */
  errors: number;
}

/** Everything that a listener can tell, as JSON. */
export interface NbdMetrics {
  readonly accepted: number;
  /** Connections that were closed at once because of a limit */
  readonly refused: number;
  readonly sessions: readonly NbdSessionStatus[];
  readonly peers: Readonly<Record<string, NbdPeerTotals>>;
}

/** Who a session is counted for. */
export function peerName(identity: TlsIdentity | undefined, address: string): string {
  if (identity?.kind === 'x509') return identity.subject;
  if (identity?.kind === 'psk') return identity.user;
  return address === '' ? 'unix' : address;
}

/** Adds up sessions by peer, for as many peers as fit. */
export class PeerTotals {
  readonly #peers = new Map<string, NbdPeerTotals>();

  add(peer: string, counters: Readonly<TransmissionCounters>, ended: NbdSessionSummary | undefined): void {
    const name = this.#peers.has(peer) || this.#peers.size < MAX_PEERS ? peer : OTHERS;
    let totals = this.#peers.get(name);
    if (totals === undefined) {
      totals = { ...newCounters(), sessions: 0, errors: 0 };
      this.#peers.set(name, totals);
    }
    totals.sessions++;
    if (ended?.error !== undefined) totals.errors++;
    for (const key of ['requests', 'refused', 'failed', 'readBytes', 'writtenBytes'] as const) {
      totals[key] += counters[key];
    }
    totals.maxInFlight = Math.max(totals.maxInFlight, counters.maxInFlight);
  }

  /** A copy with the same contents, to which running sessions may be added. */
  copy(): PeerTotals {
    const other = new PeerTotals();
    for (const [name, totals] of this.#peers) other.#peers.set(name, { ...totals });
    return other;
  }

  toJSON(): Record<string, NbdPeerTotals> {
    return Object.fromEntries(this.#peers);
  }
}

const FAMILIES = [
  ['sessions', 'sessions_total', 'Sessions that reached the server'],
  ['errors', 'session_errors_total', 'Sessions that ended because the client was wrong, late or gone'],
  ['requests', 'requests_total', 'Requests taken off the stream'],
  ['refused', 'requests_refused_total', 'Requests that were wrong or not allowed'],
  ['failed', 'requests_failed_total', 'Requests that failed in the image'],
  ['readBytes', 'read_bytes_total', 'Data read'],
  ['writtenBytes', 'written_bytes_total', 'Data written'],
  ['maxInFlight', 'max_in_flight', 'Most requests of one session that were worked on at once'],
] as const;

/** The text format of Prometheus, version 0.0.4. */
export function formatPrometheus(metrics: NbdMetrics): string {
  const lines: string[] = [];
  const family = (name: string, help: string, samples: readonly (readonly [string, number])[]): void => {
    const type = name.endsWith('_total') ? 'counter' : 'gauge';
    lines.push(`# HELP caisson_nbd_${name} ${help}`, `# TYPE caisson_nbd_${name} ${type}`);
    for (const [labels, value] of samples) lines.push(`caisson_nbd_${name}${labels} ${value}`);
  };
  family('connections_accepted_total', 'Connections accepted', [['', metrics.accepted]]);
  family('connections_refused_total', 'Connections closed at once because of a limit', [['', metrics.refused]]);
  const peers = Object.entries(metrics.peers);
  for (const [key, name, help] of FAMILIES) {
    family(
      name,
      help,
      peers.map(([peer, totals]) => [`{peer="${escapeLabel(peer)}"}`, totals[key]]),
    );
  }
  const gauge = (name: string, help: string, pick: (session: NbdSessionStatus) => number): void => {
    family(
      name,
      help,
      metrics.sessions.map((session) => [
        `{session="${session.id}",peer="${escapeLabel(session.peer)}",export="${escapeLabel(session.exportName ?? '')}"}`,
        pick(session),
      ]),
    );
  };
  gauge('session_in_flight', 'Requests that are worked on', ({ inFlight }) => inFlight);
  gauge('session_held_bytes', 'Memory held for the client', ({ heldBytes }) => heldBytes);
  gauge('session_age_seconds', 'Time since the connection was accepted', ({ ageMs }) => ageMs / 1000);
  return `${lines.join('\n')}\n`;
}

/** Subjects and export names are foreign text. */
function escapeLabel(text: string): string {
  return text.slice(0, 200).replace(/[\\"\n]/g, (character) => (character === '\n' ? '\\n' : `\\${character}`));
}
