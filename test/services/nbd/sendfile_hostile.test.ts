import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import test from 'ava';
import { CMD } from '../../../protocols/nbd/mod.ts';
import { borrowingSocket } from '../../../services/nbd/borrowing_socket.ts';
import { FileSender } from '../../../services/nbd/images/file_sender.ts';
import { InPlaceGate } from '../../../services/nbd/images/in_place_gate.ts';
import { ExportSet, MemoryImage, RawImage } from '../../../services/nbd/mod.ts';
import { PeerBudget } from '../../../services/nbd/peer_budget.ts';
import { socketPair } from '../../../services/shared/stream_pair.ts';
import { ByteClient, requestBytes } from './harness.ts';

// What one client does to the large reads, and to the server, of others.

const MIB = 1 << 20;
const directory = mkdtempSync(join(tmpdir(), 'caisson-sendfile-'));
test.after.always(() => rmSync(directory, { recursive: true, force: true }));

/** A raw image of 4 MiB, and a descriptor that takes what is sent; undefined where there is no sendfile(2) */
async function sendable(name: string): Promise<{ image: RawImage; sink: number; close(): Promise<void> } | undefined> {
  const path = join(directory, name);
  writeFileSync(path, new Uint8Array(4 * MIB).fill(7));
  const image = await RawImage.open(path, { readOnly: true, sendfile: true });
  const sink = openSync(join(directory, `${name}.sent`), 'w');
  const close = async (): Promise<void> => {
    closeSync(sink);
    await image.close();
  };
  if (image.canSend) return { image, sink, close };
  await close();
  return undefined;
}

test('clients who take nothing do not end sending for those who do', (t) => {
  const path = join(directory, 'stuck');
  writeFileSync(path, new Uint8Array(4096).fill(7));
  const [fd, sink] = [openSync(path, 'r'), openSync(join(directory, 'sink'), 'w')];
  t.teardown(() => {
    closeSync(fd);
    closeSync(sink);
  });
  const sender = FileSender.load(fd);
  if (sender === undefined) {
    t.log('SKIPPED: no node:ffi here');
    t.pass();
    return;
  }
  t.is(sender.send(sink, 0, 4096), 4096);
  // A full socket takes nothing, as a descriptor that is open for reading does.
  for (let call = 0; call < 1000; call++) t.is(sender.send(fd, 0, 4096), 0);
  t.true(sender.works);
});

test('a socket that is slow to send to sends nobody to the pool', async (t) => {
  const opened = await sendable('slow.raw');
  if (opened === undefined) {
    t.log('SKIPPED: no node:ffi here');
    t.pass();
    return;
  }
  t.teardown(opened.close);
  const { image, sink } = opened;
  const { now } = performance;
  let nowMs = now.call(performance);
  let last: number | undefined;
  try {
    // Each look at the clock finds it 5 ms further on. What was read from storage before may keep the first ones away.
    performance.now = () => {
      nowMs += 5;
      return nowMs;
    };
    for (let call = 0; call < 600; call++) last = image.sendNow(sink, 0, 4096);
  } finally {
    performance.now = now;
  }
  t.is(last, 4096);
  t.true(image.readNow(0, new Uint8Array(4096)));
});

test('InPlaceGate: where storage is the only reason, what is late without it changes nothing', (t) => {
  for (const acquits of [true, false]) {
    let nowMs = 0;
    let share = 0;
    const gate = new InPlaceGate({ slowMs: 0.04, share: () => share, acquits }, () => nowMs);
    const enters = (): boolean => {
      if (!gate.enter()) return false;
      nowMs += 5;
      gate.done(4096);
      return true;
    };
    const entered = Array.from({ length: 100 }, enters);
    t.is(entered.every(Boolean), acquits);
    share = 1;
    t.false(Array.from({ length: 100 }, enters).every(Boolean));
  }
});

test('what goes from an image to clients who take nothing is not counted as memory of their peer', async (t) => {
  const image = new MemoryImage(16 * MIB);
  image.writeNow(0, new Uint8Array(16 * MIB).fill(1));
  let calls = 0;
  const sending = Object.assign(image, {
    canSend: true,
    sendNow: () => {
      calls++;
      return 0;
    },
  });
  const exports = new ExportSet();
  exports.add({ name: '', image: sending, writable: false });
  // Less than the reads of one of them
  const budget = new PeerBudget(4 * MIB);
  const connect = async (): Promise<ByteClient> => {
    const [near, far] = await socketPair();
    const client = new ByteClient(exports, { budget }, [near, borrowingSocket(far)]);
    near.resume();
    return await client.go('', { structured: true });
  };
  const stuck = await connect();
  stuck.stream.pause();
  stuck.send(requestBytes({ length: 8 * MIB, type: CMD.READ }));
  while (calls === 0) await new Promise((resolve) => setTimeout(resolve, 10));
  const client = await connect();
  client.send(requestBytes({ length: 2 * MIB, type: CMD.READ }));
  const reply = await client.reply();
  t.is(reply?.data.length, 2 * MIB + 8);
  for (const each of [stuck, client]) {
    each.stream.destroy();
    await each.summary;
  }
});
