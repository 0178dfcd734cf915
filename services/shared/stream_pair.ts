import { chmod, mkdtemp, rm } from 'node:fs/promises';
import { createServer, Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** Two connected in-process streams: the links of embedded mode. */
export { duplexPair } from 'node:stream';

/**
 * Two connected UNIX sockets, both paused, for `child_process` stdio. Plain Node has no socketpair(2), so one end connects to
 * a listener that exists for a moment in a directory which only this user can enter.
 */
export async function socketPair(): Promise<[Socket, Socket]> {
  const [pair] = await socketPairs(1);
  return pair!;
}

/** Several pairs through one listener. Both ends are paused, so that either can be passed on with nothing read. */
export async function socketPairs(count: number): Promise<[Socket, Socket][]> {
  const directory = await mkdtemp(join(tmpdir(), 'caisson-link-'));
  const server = createServer({ pauseOnConnect: true });
  try {
    await chmod(directory, 0o700);
    const path = join(directory, 's');
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen(path, resolve);
    });
    const pairs: [Socket, Socket][] = [];
    for (let i = 0; i < count; i++) {
      // One at a time: the next accepted connection is then the one just made.
      const accepted = new Promise<Socket>((resolve, reject) => {
        server.once('connection', resolve);
        server.once('error', reject);
      });
      const near = new Socket();
      near.pause(); // else it reads ahead as soon as it is connected
      near.connect(path);
      const connected = new Promise<void>((resolve, reject) => {
        near.once('connect', resolve);
        near.once('error', reject);
      });
      const [far] = await Promise.all([accepted, connected]);
      far.pause();
      pairs.push([near, far]);
    }
    return pairs;
  } finally {
    server.close();
    await rm(directory, { recursive: true, force: true });
  }
}
