import { Duplex } from 'node:stream';
import type { WebSocket } from 'ws';
import { WireError } from '../../protocols/bytes/mod.ts';

/** Up to this the parts of one write are joined into one message, in `bytes` */
const JOIN_BYTES = 256 << 10;

/** A WebSocket as a byte stream, which RFB and NBD are: binary messages only, their borders mean nothing. */
export function websocketStream(socket: WebSocket): Duplex {
  const send = (data: Uint8Array, done: (error?: Error | null) => void) => {
    if (socket.readyState === socket.OPEN) socket.send(data, { binary: true }, (error) => done(error));
    else done(new Error('Cannot send: the WebSocket is closed'));
  };
  const stream = new Duplex({
    allowHalfOpen: false,
    read() {
      socket.resume();
    },
    write(chunk: Uint8Array, _encoding, done) {
      send(chunk, done);
    },
    writev(chunks, done) {
      const parts = chunks.map(({ chunk }) => chunk as Uint8Array);
      const total = parts.reduce((sum, part) => sum + part.length, 0);
      if (total <= JOIN_BYTES) {
        send(Buffer.concat(parts, total), done);
        return;
      }
      for (const part of parts.slice(0, -1)) send(part, () => {}); // the last one's end is the end of all
      send(parts.at(-1)!, done);
    },
    final(done) {
      socket.close(1000);
      done();
    },
    destroy(error, done) {
      socket.terminate();
      done(error);
    },
  });
  socket.on('message', (data, isBinary) => {
    if (!isBinary) {
      socket.close(1003);
      stream.destroy(new WireError('ERR_WIRE_VALUE', 'Cannot accept a text message: expected binary ones'));
      return;
    }
    // One Buffer: binaryType is the default 'nodebuffer'
    if (!stream.push(data as Buffer)) socket.pause();
  });
  socket.on('close', () => {
    stream.push(null);
    stream.destroy();
  });
  socket.on('error', (error) => stream.destroy(error));
  return stream;
}
