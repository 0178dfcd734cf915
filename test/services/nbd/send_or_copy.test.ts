import test from 'ava';
import { type DataWay, SendOrCopy } from '../../../services/nbd/send_or_copy.ts';

const MIB = 1 << 20;
const GIB = 2 ** 30;

/** A client that takes reads of 1 MiB one after the other, each way in its time. */
class Client {
  nowMs = 0;
  readonly ms: Record<DataWay, number>;
  readonly ways: SendOrCopy;
  readonly taken: Record<DataWay, number> = { send: 0, copy: 0 };

  constructor(ms: Record<DataWay, number>) {
    this.ms = ms;
    this.ways = new SendOrCopy(() => this.nowMs);
  }

  take(lengthBytes: number, pauseMs = 0): void {
    for (let left = lengthBytes; left > 0; left -= MIB) {
      const { way } = this.ways;
      this.nowMs += this.ms[way] + pauseMs;
      this.taken[way] += MIB;
      this.ways.over(way, MIB);
    }
  }

  /** What part of the next bytes is copied */
  share(lengthBytes: number): number {
    const before = { ...this.taken };
    this.take(lengthBytes);
    return (this.taken.copy - before.copy) / lengthBytes;
  }
}

test('large reads are sent at first, and go on so where copying is not faster', (t) => {
  const client = new Client({ send: 1, copy: 0.95 });
  t.is(client.ways.way, 'send');
  client.take(64 * MIB);
  t.is(client.ways.way, 'send');
  const share = client.share(16 * GIB);
  t.true(share > 0 && share < 0.01, `${share}`);
});

test('large reads are copied where that is faster, and soon', (t) => {
  const client = new Client({ send: 1, copy: 0.5 });
  client.take(64 * MIB);
  t.is(client.ways.way, 'copy');
  const share = client.share(16 * GIB);
  t.true(share < 1 && share > 0.99, `${share}`);
});

test('a client whose memory has moved gets the better way again', (t) => {
  const client = new Client({ send: 1, copy: 0.5 });
  client.take(64 * MIB);
  t.is(client.ways.way, 'copy');
  client.ms.send = 0.2;
  client.take(GIB);
  t.is(client.ways.way, 'send');
});

test('one slow window of each way is forgiven, and a client that pauses is not measured by its pauses', (t) => {
  const slow = new Client({ send: 1, copy: 3 });
  slow.nowMs = 5;
  slow.take(4 * MIB);
  slow.nowMs += 40; // somebody else had the core
  slow.take(60 * MIB);
  t.is(slow.ways.way, 'send');
  const pausing = new Client({ send: 1, copy: 0.5 });
  pausing.take(64 * MIB, 1000);
  t.is(pausing.taken.copy, 0, 'nothing is known of it');
  for (let burst = 0; burst < 20; burst++) {
    pausing.nowMs += 10_000;
    pausing.take(16 * MIB);
  }
  t.is(pausing.ways.way, 'copy');
});

test('what was on its way when the way changed counts for neither', (t) => {
  const client = new Client({ send: 1, copy: 1 });
  for (let reads = 0; reads < 100 && client.ways.way === 'send'; reads++) client.take(MIB);
  t.is<DataWay, DataWay>(client.ways.way, 'copy');
  for (let late = 0; late < 1000; late++) client.ways.over('send', MIB);
  t.is<DataWay, DataWay>(client.ways.way, 'copy');
  client.take(64 * MIB);
  t.is(client.ways.way, 'send');
});
