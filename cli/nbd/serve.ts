import { rmSync, writeFileSync } from 'node:fs';
import { flushCompileCache } from 'node:module';
import process from 'node:process';
import { ExportSet, type NbdExport } from '../../services/nbd/export_set.ts';
import { type NbdListenAddress, NbdListener } from '../../services/nbd/listener.ts';
import type { NbdServerTls, NbdSessionSummary } from '../../services/nbd/mod.ts';
import { DEFAULT_NBD_LIMITS, type NbdServerLimits } from '../../services/nbd/server_limits.ts';
import { SessionPool } from '../../services/nbd/session_pool.ts';
import { SessionWorkers } from '../../services/nbd/workers/worker_pool.ts';
import type { TlsIdentity } from '../../services/shared/mod.ts';
import { errorText } from '../format.ts';
import { UsageError } from '../usage_error.ts';
import type { NbdArguments } from './arguments.ts';
import { tellParent } from './background.ts';
import { type OpenedSource, openSource, processesOf } from './source.ts';

/** Serves IMAGE until a signal comes, or the last client has left. */
export async function serve(address: NbdListenAddress, values: NbdArguments): Promise<number> {
  const shared = values.integer('shared', 1, 0, DEFAULT_NBD_LIMITS.connections) || DEFAULT_NBD_LIMITS.connections;
  const handshakeMs = values.integer('handshake-limit', DEFAULT_NBD_LIMITS.handshakeMs / 1000, 0, 86_400) * 1000;
  const pollMs = values.integer('poll-max-ns', DEFAULT_NBD_LIMITS.pollMs * 1e6, 0, 1_000_000) / 1e6;
  const processes = processesOf(values, shared);
  const tls = await tlsOf(values);
  const web = webAddresses(values);
  const opened = await openSource(values, processes);
  const { image, sharing } = opened;
  // Each process counts for itself what one address holds.
  const peerBytes = Math.ceil(DEFAULT_NBD_LIMITS.peerBytes / (sharing === undefined ? 1 : processes));
  const limits = { ...DEFAULT_NBD_LIMITS, handshakeMs, peerBytes, pollMs };
  const stopped = Promise.withResolvers<void>();
  // The second Ctrl-C ends at once. SIGTERM comes twice from timeout(1), and what was written has to reach the disk.
  process.once('SIGINT', stopped.resolve);
  process.on('SIGTERM', stopped.resolve);
  const pidFile = values.get('pid-file');
  let wrotePid = false;
  const closers: (() => Promise<void>)[] = [];
  const closeAll = async (): Promise<void> => {
    await Promise.all(closers.splice(0).map((close) => close()));
  };
  let workers: SessionWorkers | undefined;
  try {
    const exports = new ExportSet();
    const served = describedExport(opened, values, shared);
    exports.add(served);
    if (sharing !== undefined) workers = workersFor(sharing, served, { processes, limits });
    const pool = new SessionPool(exports, {
      shared,
      limits,
      simpleOnly: values.has('no-sr'),
      ...(workers === undefined ? {} : { workers }),
      ...(tls === undefined ? {} : { tls }),
      onSession: (summary) => {
        // qemu-nbd -v says nothing of its clients, and scripts compare.
        if (values.has('verbose') && !values.has('qemu-nbd')) process.stderr.write(`${farewell(summary)}\n`);
        // As qemu-nbd: who only looked at the greeting does not count.
        if (!values.has('persistent') && summary.exportName !== undefined && pool.connections === 0) stopped.resolve();
      },
    });
    const listener = await NbdListener.listen(address, exports, { pool, ...(tls === undefined ? {} : { tls }) });
    closers.push(() => listener.close());
    const uris = [listener.uriOf(served.name), ...(await listenWeb(web, pool, values, closers))];
    if (pidFile !== undefined) {
      writeFileSync(pidFile, `${process.pid}\n`);
      wrotePid = true;
    }
    if (!values.has('qemu-nbd')) process.stdout.write(`${uris.join('\n')}\n`);
    tellParent();
    // Now, and not when it ends: a server that is killed would compile everything anew, each time.
    flushCompileCache();
    await stopped.promise;
    await closeAll();
    await image.flush();
  } finally {
    // A socket that listens would keep the process from ending, whatever has failed.
    await closeAll();
    process.off('SIGINT', stopped.resolve);
    if (wrotePid) removeQuietly(pidFile!);
    // No process that could still write outlives the lock.
    await workers?.close();
    sharing?.files.close();
    await image.close();
    process.off('SIGTERM', stopped.resolve);
  }
  return 0;
}

/** A file that cannot be removed any more must not keep the image from being closed. */
function removeQuietly(path: string): void {
  try {
    rmSync(path);
  } catch {}
}

/** Processes beside this one; none is started before it is needed. */
function workersFor(
  { files, options, offset, raw }: NonNullable<OpenedSource['sharing']>,
  served: NbdExport,
  { processes, limits }: { readonly processes: number; readonly limits: NbdServerLimits },
): SessionWorkers {
  const { name, writable, bitmaps = [], allocationDepth = false, writeThrough = false } = served;
  const workers = new SessionWorkers({
    processes,
    limits,
    source: (first) => files.inheritedFrom(first),
    options,
    offset,
    served: { name, writable, bitmaps, allocationDepth, writeThrough },
    fds: files.fds,
    lockHolder: raw?.lockHolder,
    onFlushFailure: () => raw?.distrustFlushes(),
    onText: (text) => process.stderr.write(`caisson nbd: ${errorText(text)}\n`),
  });
  if (raw !== undefined) raw.onFlushFailure = () => workers.flushFailed();
  return workers;
}

/** @throws Error for a bitmap that is not there */
function describedExport({ image }: OpenedSource, values: NbdArguments, shared: number): NbdExport {
  const name = values.get('export-name') ?? '';
  const description = values.get('description');
  const bitmaps = values.all('bitmap');
  const known = image.dirtyBitmaps?.() ?? [];
  const missing = bitmaps.find((bitmap) => !known.includes(bitmap));
  if (missing !== undefined) throw new Error(`Cannot serve bitmap ${missing}: the image has none of that name`);
  const cache = values.oneOf('cache', ['writeback', 'none', 'writethrough', 'directsync', 'unsafe'], 'writeback');
  return {
    name,
    image,
    writable: !values.has('read-only'),
    multiConn: shared > 1,
    bitmaps,
    allocationDepth: values.has('allocation-depth'),
    resizable: values.has('resizable'),
    writeThrough: cache === 'writethrough' || cache === 'directsync',
    ...(description === undefined ? {} : { description }),
  };
}

const TLS_WORDS = ['tls-creds', 'tls-authz', 'tls-mode', 'tls-hostname', 'tls-user', 'object'];

/** Loaded only where it is asked for, as is what speaks HTTP. */
async function tlsOf(values: NbdArguments): Promise<NbdServerTls | undefined> {
  if (!TLS_WORDS.some((word) => values.has(word))) return undefined;
  return (await import('./credentials.ts')).serverTls(values);
}

interface WebAddress {
  readonly host: string;
  readonly port: number;
  readonly websocket: boolean;
  readonly metrics: boolean;
}

/** One port where --websocket and --metrics name the same. */
function webAddresses(values: NbdArguments): WebAddress[] {
  const origins = values.all('websocket-origin');
  const websocket = hostPort(values, 'websocket');
  const metrics = hostPort(values, 'metrics');
  if (websocket === undefined && origins.length > 0)
    throw new UsageError('Cannot use --websocket-origin without --websocket');
  if (websocket !== undefined && metrics?.host === websocket.host && metrics.port === websocket.port) {
    return [{ ...websocket, websocket: true, metrics: true }];
  }
  return [
    ...(websocket === undefined ? [] : [{ ...websocket, websocket: true, metrics: false }]),
    ...(metrics === undefined ? [] : [{ ...metrics, websocket: false, metrics: true }]),
  ];
}

function hostPort(values: NbdArguments, long: string): { host: string; port: number } | undefined {
  const text = values.get(long);
  if (text === undefined) return undefined;
  const match = /^(?:(?:\[([0-9a-fA-F:.]+)\]|([^:]+)):)?([0-9]{1,5})$/.exec(text);
  if (match === null || Number(match[3]) > 65_535) {
    throw new UsageError(`Cannot use --${long}=${text}: expected a port, or an address, a colon and a port`);
  }
  return { host: match[1] ?? match[2] ?? '127.0.0.1', port: Number(match[3]) };
}

async function listenWeb(
  addresses: readonly WebAddress[],
  pool: SessionPool,
  values: NbdArguments,
  closers: (() => Promise<void>)[],
): Promise<string[]> {
  const uris: string[] = [];
  if (addresses.length === 0) return uris;
  const { NbdWebListener } = await import('../../services/nbd/websocket.ts');
  for (const { host, port, websocket, metrics } of addresses) {
    const listener = await NbdWebListener.listen(
      { host, port },
      {
        origins: values.all('websocket-origin'),
        ...(websocket ? { pool } : {}),
        ...(metrics ? { metrics: () => pool.currentMetrics() } : {}),
      },
    );
    closers.push(() => listener.close());
    if (websocket) uris.push(`${listener.url('ws')}/`);
    if (metrics) uris.push(`${listener.url()}/metrics`);
  }
  return uris;
}

function farewell({ exportName, counters, peer, error }: NbdSessionSummary): string {
  const { requests, readBytes, writtenBytes } = counters;
  const why = error === undefined ? '' : `; ${errorText(error)}`;
  const who = peer === undefined ? 'client' : `client ${nameOf(peer)}`;
  const what = exportName === undefined ? 'in its handshake' : `after ${requests} requests`;
  return `caisson nbd: ${who} left ${what}, ${readBytes} bytes read, ${writtenBytes} written${why}`;
}

function nameOf(peer: TlsIdentity): string {
  const name = peer.kind === 'psk' ? peer.user : peer.kind === 'x509' ? peer.subject : 'without a name';
  return JSON.stringify(name.slice(0, 200)).replace(/[\x7f-\x9f]/g, '?');
}
