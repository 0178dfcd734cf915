// Main program of a worker: serves sessions whose handshake another process has done. What to open comes first, then
// one message with a connection for each session, over the channel that Node opens between a process and its children.
import { flushCompileCache } from 'node:module';
import type { Server } from 'node:net';
import process from 'node:process';
import { socketOver } from '../borrowing_socket.ts';
import { newCounters } from '../command_runner.ts';
import { describeExport, type NbdExport } from '../export_set.ts';
import type { DiskImage } from '../images/disk_image.ts';
import { openImage } from '../images/open_image.ts';
import { RawImage } from '../images/raw_image.ts';
import { PeerBudget } from '../peer_budget.ts';
import { type NbdLiveSession, serveNbd } from '../server.ts';
import { SliceImage } from '../slice_image.ts';
import type { FromWorker, ToWorker, WorkerSession, WorkerStart } from './messages.ts';

interface Running {
  readonly abort: AbortController;
  live: NbdLiveSession | undefined;
}

class Worker {
  readonly #raw: RawImage | undefined;
  readonly #served: NbdExport;
  readonly #start: WorkerStart;
  readonly #sessions = new Map<number, Running>();
  readonly #budgets = new Map<string, { sessions: number; readonly budget: PeerBudget }>();

  private constructor(image: DiskImage, start: WorkerStart) {
    this.#raw = image instanceof RawImage ? image : undefined;
    if (this.#raw !== undefined) {
      this.#raw.onFlushFailure = () => say({ kind: 'flush-failed' });
      if (start.flushFailed) this.#raw.distrustFlushes();
    }
    this.#served = { ...start.served, image: start.offset === 0 ? image : new SliceImage(image, start.offset) };
    this.#start = start;
  }

  static async open(start: WorkerStart): Promise<Worker> {
    // The lock is held by who has started us; its socket is open here, too, so that it lasts as long as we do.
    return new Worker(await openImage(start.source, { ...start.options, lock: false }), start);
  }

  /** A flush has failed in another process: what it covered may be lost, and no flush of ours can say otherwise. */
  flushFailed(): void {
    this.#raw?.distrustFlushes();
  }

  async serve(session: WorkerSession, handle: object | undefined): Promise<void> {
    const { id, address, description, structured, extended, contexts, rest } = session;
    if (handle === undefined) {
      say({ kind: 'ended', id, counters: newCounters(), error: 'Cannot serve a session: its connection has not come' });
      return;
    }
    const running: Running = { abort: new AbortController(), live: undefined };
    this.#sessions.set(id, running);
    const peer = this.#budgets.get(address) ?? { sessions: 0, budget: new PeerBudget(this.#start.limits.peerBytes) };
    this.#budgets.set(address, peer);
    peer.sessions++;
    const summary = await serveNbd(
      socketOver(handle),
      { list: () => undefined, open: () => undefined },
      {
        limits: this.#start.limits,
        budget: peer.budget,
        signal: running.abort.signal,
        negotiated: {
          served: this.#served,
          description: { ...describeExport(this.#served), ...description },
          structured,
          extended,
          contexts,
          rest,
        },
        onTransmission: (_name, live) => {
          running.live = live;
        },
      },
    );
    this.#sessions.delete(id);
    if (--peer.sessions === 0) this.#budgets.delete(address);
    const { counters, error } = summary;
    say({ kind: 'ended', id, counters, ...(error === undefined ? {} : { error: error.message }) });
  }

  shutdown(id: number): void {
    this.#sessions.get(id)?.abort.abort();
  }

  count(query: number): void {
    const sessions = [...this.#sessions].flatMap(([id, { live }]) =>
      live === undefined
        ? []
        : [{ id, counters: { ...live.counters }, inFlight: live.inFlight, heldBytes: live.heldBytes }],
    );
    say({ kind: 'counted', query, sessions });
  }
}

function say(message: FromWorker): void {
  // Nobody is there to hear it: the channel's end is on its way.
  process.send!(message, undefined, undefined, () => {});
}

// A terminal, and who stops a service, tell the whole group; when to end is for the process that has started us.
for (const signal of ['SIGINT', 'SIGHUP', 'SIGTERM'] as const) process.on(signal, () => {});
// No worker outlives it: the kernel closes the channel even when it was killed.
process.once('disconnect', () => process.exit(0));
process.title = 'caisson-nbd-worker';

/** Never closed: the image stays locked while a process of ours can write to it. */
let lockHolder: Server | undefined;
const { promise: worker, resolve, reject } = Promise.withResolvers<Worker>();
process.on('message', (message: ToWorker, handle: object | undefined) => {
  if (message.kind === 'lock') {
    lockHolder = handle as Server | undefined;
    lockHolder?.on('connection', (socket) => socket.destroy());
    return;
  }
  if (message.kind === 'start') {
    Worker.open(message).then(resolve, reject);
    return;
  }
  void worker.then((running) => {
    if (message.kind === 'session') void running.serve(message, handle);
    else if (message.kind === 'shutdown') running.shutdown(message.id);
    else if (message.kind === 'count') running.count(message.query);
    else running.flushFailed();
  });
});
await worker;
say({ kind: 'ready' });
flushCompileCache();
