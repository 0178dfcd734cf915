import { Socket, type SocketConstructorOpts } from 'node:net';
import type { Duplex } from 'node:stream';
import { COPY_SKEW_BYTES } from '../../protocols/bytes/mod.ts';

/** A read of the kernel fills at most this, in `bytes`; untouched pages take no memory */
const RECEIVE_BYTES = 256 * 1024;

/** What comes in, as a view that is only good until the handler returns, unless the handler's owner gave it */
export const BORROWED_EVENT = 'borrowed';

/**
 * Says where the next read goes: a buffer, which is filled from its start and comes back as a view of itself; a
 * number, for that many bytes of the socket's own buffer; undefined for all of that buffer.
 */
export type NextReceiver = () => Uint8Array | number | undefined;

const receivers = new WeakMap<Duplex, NextReceiver>();

/** Asks `next` before each read of a borrowing socket; of other streams nothing is asked. */
export function receiveInto(stream: Duplex, next: NextReceiver): void {
  receivers.set(stream, next);
}

/** The parts of a socket that Node does not show */
interface Inside {
  _handle: { readonly fd?: number } | null | undefined;
}

/** Sockets made here: their handles may go elsewhere */
const borrowing = new WeakSet<Duplex>();

/**
 * The same connection over a socket that reads into one buffer again and again, or where {@link receiveInto} says,
 * and emits {@link BORROWED_EVENT} instead of `data`. Without it each read makes a buffer of 64 KiB, and large writes
 * cost ten times the processor time in the allocator and the collector. Node offers this for sockets that it
 * connects, not for those that it accepts, so the handle is taken out of `accepted`, which must not have been read
 * from (`pauseOnConnect`). Where the handle is not to be had, `accepted` itself comes back, with its `data`; so does,
 * untouched, what is no socket: a pair within one process.
 */
export function borrowingSocket<Accepted extends Duplex>(accepted: Accepted): Accepted | Socket {
  if (!(accepted instanceof Socket)) return accepted;
  const handle = takeHandle(accepted);
  if (handle === undefined) {
    accepted.resume();
    return accepted;
  }
  return socketOver(handle);
}

/** Whether the connection can go on in another process. */
export function isMovable(stream: Duplex): boolean {
  return borrowing.has(stream);
}

/** The open descriptor of a borrowing socket, for this moment only; undefined where there is none. */
export function descriptorOf(stream: Duplex): number | undefined {
  if (!borrowing.has(stream)) return undefined;
  const fd = (stream as unknown as Inside)._handle?.fd;
  return fd === undefined || fd < 0 ? undefined : fd;
}

/**
 * What another process needs to go on with a connection: the handle of a borrowing socket, which is over then. Nothing
 * is read from it any more, and nothing that was written may wait. Undefined: it has to stay here.
 */
export function releaseHandle(socket: Duplex): object | undefined {
  if (!borrowing.has(socket) || socket.writableLength > 0) return undefined;
  socket.pause();
  return takeHandle(socket as Socket);
}

function takeHandle(socket: Socket): object | undefined {
  const inside = socket as unknown as Inside;
  const handle = inside._handle;
  if (typeof handle !== 'object' || handle === null) return undefined;
  inside._handle = null;
  // The server counts it out, and this one is over; the handle lives on.
  socket.destroy();
  return handle;
}

/** A borrowing socket over the handle of a connection. */
export function socketOver(handle: object): Socket {
  const holder: { socket: Socket | undefined } = { socket: undefined };
  const own = new Uint8Array(RECEIVE_BYTES + COPY_SKEW_BYTES).subarray(COPY_SKEW_BYTES);
  // A client that asks one thing after the other sends as much each time.
  let last: Uint8Array = own;
  const options = {
    handle,
    // Not before somebody listens: what comes for a client that waits its turn stays in the kernel.
    manualStart: true,
    allowHalfOpen: true,
    onread: {
      // Asked at the start and after each read, and what it gives stays in use until the next one.
      buffer: (): Uint8Array => {
        const next = holder.socket === undefined ? undefined : receivers.get(holder.socket)?.();
        if (next === undefined) return own;
        return typeof next === 'number' ? own.subarray(0, next) : next;
      },
      callback: (count: number, buffer: Uint8Array): boolean => {
        const isSame = count === last.length && buffer === own;
        const chunk = isSame ? last : buffer.subarray(0, count);
        if (buffer === own) last = chunk;
        holder.socket?.emit(BORROWED_EVENT, chunk);
        return true;
      },
    },
  };
  const socket = new Socket(options as unknown as SocketConstructorOpts);
  holder.socket = socket;
  borrowing.add(socket);
  socket.setNoDelay(true);
  return socket;
}
