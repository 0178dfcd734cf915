import { createServer, type Server } from 'node:net';
import process from 'node:process';
import { setTimeout } from 'node:timers/promises';

/** A name that nobody else has until it is released, or its process ends. */
export interface NameLock {
  /** The socket that has it: a child that inherits it holds the name, too. Undefined: nobody can */
  readonly holder?: Server;
  release(): Promise<void>;
}

/** A process that is being started has all that its parent has open until it executes its program: a moment */
const ATTEMPTS = 4;
const RETRY_MS = 15;

/**
 * Takes a name among all processes of this network namespace: the abstract socket namespace of Linux is a set of names
 * that die with their owner. `name` has at most 100 bytes. Undefined: somebody has it. Where there are no such names,
 * or sockets are forbidden, everybody gets it.
 */
export async function lockName(name: string): Promise<NameLock | undefined> {
  for (let attempt = 1; ; attempt++) {
    const lock = await tryToLock(name);
    if (lock !== undefined || attempt === ATTEMPTS) return lock;
    await setTimeout(RETRY_MS);
  }
}

function tryToLock(name: string): Promise<NameLock | undefined> {
  if (process.platform !== 'linux') return Promise.resolve({ release: async () => {} });
  const server = createServer((socket) => socket.destroy());
  return new Promise((resolve) => {
    server.once('error', (error: NodeJS.ErrnoException) => {
      resolve(error.code === 'EADDRINUSE' ? undefined : { release: async () => {} });
    });
    server.listen({ path: `\0${name}` }, () => {
      server.unref();
      resolve({ holder: server, release: () => new Promise((done) => server.close(() => done())) });
    });
  });
}
