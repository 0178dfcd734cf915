import {
  BASE_ALLOCATION,
  type ExportDescription,
  type ExportSummary,
  MAX_PAYLOAD_BYTES,
  MAX_STRING_BYTES,
  QEMU_ALLOCATION_DEPTH,
  QEMU_DIRTY_BITMAP,
  TRANSMISSION_FLAG,
} from '../../protocols/nbd/mod.ts';
import type { TlsIdentity } from '../shared/mod.ts';
import type { DiskImage } from './images/mod.ts';

/** One image under one name. The same image may stand under several names, with other rights. */
export interface NbdExport {
  readonly name: string;
  readonly description?: string;
  readonly image: DiskImage;
  /** False: clients may only read, whatever the image allows */
  readonly writable: boolean;
  /** Names of the image's dirty bitmaps that clients may read, each as a meta context */
  readonly bitmaps?: readonly string[];
  /** Offer qemu:allocation-depth, where the image can tell (default false) */
  readonly allocationDepth?: boolean;
  /** Offer RESIZE, where the image can (default false) */
  readonly resizable?: boolean;
  /** Every change is on stable storage before it is answered (default false) */
  readonly writeThrough?: boolean;
  /** Several connections may share it (default true); false where only one is let in */
  readonly multiConn?: boolean;
  /** Only for clients that came over TLS (default false); others do not see it in the list */
  readonly tlsOnly?: boolean;
  /** Says who may use it; to others it does not exist. `peer` is undefined without TLS (default: everybody) */
  readonly authorize?: (peer: TlsIdentity | undefined) => boolean;
  /** Aborted when the export is taken away: sessions on it end */
  readonly signal?: AbortSignal;
}

/** Who is asking. */
export interface ExportClient {
  /** The session is inside TLS */
  readonly secure: boolean;
  /** Who the client has proven to be */
  readonly peer: TlsIdentity | undefined;
}

const PLAIN_CLIENT: ExportClient = { secure: false, peer: undefined };

/** Where a session looks up what a client asks for. */
export interface ExportDirectory {
  /** Undefined: clients may not list */
  list(client?: ExportClient): readonly ExportSummary[] | undefined;
  /** Called when a client really wants it: an expensive open belongs here, not into connection set-up */
  open(name: string, client?: ExportClient): NbdExport | undefined | Promise<NbdExport | undefined>;
}

/** The named exports of one server. The first one added is also the default export ''. */
export class ExportSet implements ExportDirectory {
  readonly #exports = new Map<string, { readonly export: NbdExport; readonly abort: AbortController }>();

  /** @throws RangeError for a name that is too long or in use */
  add(added: Omit<NbdExport, 'signal'>): void {
    if (Buffer.byteLength(added.name) > MAX_STRING_BYTES || added.name.includes('\0')) {
      throw new RangeError(`Cannot add an export: its name is longer than ${MAX_STRING_BYTES} bytes or contains NUL`);
    }
    if (this.#exports.has(added.name)) {
      throw new RangeError(`Cannot add export ${JSON.stringify(added.name)}: the name is in use`);
    }
    const abort = new AbortController();
    this.#exports.set(added.name, { export: { ...added, signal: abort.signal }, abort });
  }

  /** Ends the sessions on it, too; false when there is no such export. */
  remove(name: string): boolean {
    const entry = this.#exports.get(name);
    if (entry === undefined) return false;
    this.#exports.delete(name);
    entry.abort.abort();
    return true;
  }

  clear(): void {
    for (const name of [...this.#exports.keys()]) this.remove(name);
  }

  get size(): number {
    return this.#exports.size;
  }

  list(client: ExportClient = PLAIN_CLIENT): ExportSummary[] {
    return [...this.#exports.values()]
      .map((entry) => entry.export)
      .filter((served) => (served.tlsOnly !== true || client.secure) && isAllowed(served, client))
      .map(({ name, description }) => (description === undefined ? { name } : { name, description }));
  }

  open(name: string, client: ExportClient = PLAIN_CLIENT): NbdExport | undefined {
    const entry = this.#exports.get(name) ?? (name === '' ? this.#exports.values().next().value : undefined);
    if (entry === undefined) return undefined;
    // Without TLS the negotiation tells the client to come back with it; who it is, is looked at then.
    if (entry.export.tlsOnly === true && !client.secure) return entry.export;
    return isAllowed(entry.export, client) ? entry.export : undefined;
  }
}

function isAllowed(served: NbdExport, client: ExportClient): boolean {
  return served.authorize === undefined || served.authorize(client.peer) === true;
}

/** What the protocol says of an export, from what its image can do. */
export function describeExport(served: NbdExport): ExportDescription {
  const { image } = served;
  const writable = served.writable && !image.readOnly;
  const contexts = [BASE_ALLOCATION];
  if (served.allocationDepth && image.allocationDepth !== undefined) contexts.push(QEMU_ALLOCATION_DEPTH);
  const bitmaps = new Set(image.dirtyBitmaps?.() ?? []);
  for (const name of served.bitmaps ?? []) if (bitmaps.has(name)) contexts.push(`${QEMU_DIRTY_BITMAP}${name}`);
  let flags = TRANSMISSION_FLAG.HAS_FLAGS | TRANSMISSION_FLAG.SEND_CACHE;
  flags |= TRANSMISSION_FLAG.SEND_FLUSH | TRANSMISSION_FLAG.SEND_FUA;
  // All sessions share one image object, so that a flush on one covers the writes of all.
  if (served.multiConn !== false) flags |= TRANSMISSION_FLAG.CAN_MULTI_CONN;
  if (writable) flags |= TRANSMISSION_FLAG.SEND_TRIM | TRANSMISSION_FLAG.SEND_WRITE_ZEROES;
  else flags |= TRANSMISSION_FLAG.READ_ONLY;
  if (writable && served.resizable && image.resize !== undefined) flags |= TRANSMISSION_FLAG.SEND_RESIZE;
  if (writable && image.canFastZero) flags |= TRANSMISSION_FLAG.SEND_FAST_ZERO;
  return {
    name: served.name,
    ...(served.description === undefined ? {} : { description: served.description }),
    sizeBytes: BigInt(image.sizeBytes),
    flags,
    blockSizes: { minimum: image.blockBytes, preferred: Math.max(4096, image.blockBytes), maximum: MAX_PAYLOAD_BYTES },
    contexts,
    ...(served.tlsOnly === true ? { tlsRequired: true } : {}),
  };
}
