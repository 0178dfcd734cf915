import { connect, type Socket } from 'node:net';
import type { Row } from '../machine/report.ts';
import { round } from '../machine/statistics.ts';
import { dropCache } from './cache.ts';
import { work } from './clients.ts';
import { BenchServer, type Setup } from './servers.ts';

const PEERS = 100;
/** A client's first flags, and the start of an option that says 16 KiB and sends one byte less */
const HALF_OPTION = 16 * 1024;

const HOT = { kind: 'fio', rw: 'randread', blockBytes: 4096, depth: 16, jobs: 1 } as const;

const bound = (name: string, unit: string, value: number, must: number): Row => ({
  workload: name,
  unit,
  ours: round(value, 1),
  must: `≤ ${must}`,
  verdict: value <= must ? 'met' : 'missed',
});

/** What idle and half-open peers cost, and that they are gone after the handshake's deadline. */
export async function measureHostilePeers(setup: Setup): Promise<Row[]> {
  const server = await BenchServer.start('ours', { transport: 'unix', storage: 'memory', format: 'raw' }, setup);
  const sockets: Socket[] = [];
  try {
    await work(HOT, 'unix', setup, 500);
    const before = server.memory().residentBytes;
    let gone = 0;
    const start = performance.now();
    for (let index = 0; index < PEERS; index++) sockets.push(hostilePeer(setup.socket, index, () => gone++));
    await sleep(1000);
    const during = server.memory().residentBytes;
    // 10 s is the deadline; half of it again for a busy host
    while (gone < PEERS && performance.now() - start < 15_000) await sleep(100);
    const seconds = (performance.now() - start) / 1000;
    return [
      bound(`memory of ${PEERS} peers that never finish a handshake`, 'MB', (during - before) / 1e6, 10),
      { ...bound('… of them left after the deadline', 'peers', PEERS - gone, 0), 'after s': round(seconds, 1) },
    ];
  } finally {
    for (const socket of sockets) socket.destroy();
    await server.stop();
  }
}

function hostilePeer(path: string, index: number, onGone: () => void): Socket {
  const socket = connect(path);
  socket.on('error', () => {});
  socket.once('close', onGone);
  socket.resume();
  if (index % 2 === 0) return socket;
  const bytes = Buffer.alloc(4 + 16 + HALF_OPTION - 1);
  bytes.writeUInt32BE(3, 0); // FIXED_NEWSTYLE, NO_ZEROES
  bytes.write('IHAVEOPT', 4, 'latin1');
  bytes.writeUInt32BE(7, 12); // NBD_OPT_GO
  bytes.writeUInt32BE(HALF_OPTION, 16);
  socket.write(bytes);
  return socket;
}

/** The longest that the event loop stands while one peer reads a cold image as fast as it can. */
export async function measureStall(setup: Setup, runMs: number): Promise<Row[]> {
  const served = { transport: 'unix', storage: 'cold', format: 'raw' } as const;
  const server = await BenchServer.start('ours', served, setup, true);
  try {
    await work(HOT, 'unix', setup, 500);
    dropCache(setup.images['file raw']);
    await server.worstStall();
    await work(HOT, 'unix', setup, runMs);
    const { ms, ownMs } = await server.worstStall();
    return [
      bound('event loop stands while a cold image is read', 'ms', ms, 20),
      bound('… without waiting for a core that others had', 'ms', ownMs, 20),
    ];
  } finally {
    await server.stop();
  }
}

const sleep = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));
