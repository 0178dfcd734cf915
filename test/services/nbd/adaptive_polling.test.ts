import test from 'ava';
import { AdaptivePolling, type PollingSystem } from '../../../services/nbd/adaptive_polling.ts';

const MAX_MS = 0.05;
/** What one look of the event loop takes */
const LOOK_MS = 0.003;
const REPLY_MS = 0.01;

/** An event loop with a clock of its own, which looks for input as often as it is asked to. */
class Loop implements PollingSystem {
  readonly polling: AdaptivePolling;
  nowMs = 0;
  /** Of the core, in `ns`; undefined: the system does not tell */
  waited: number | undefined = 0;
  looks = 0;
  #soon: (() => void) | undefined;

  readonly hasCores: boolean;

  constructor(hasCores = true, maxMs = MAX_MS) {
    this.hasCores = hasCores;
    this.polling = new AdaptivePolling(maxMs, this);
  }

  now(): number {
    return this.nowMs;
  }

  waitedNs(): number | undefined {
    return this.waited;
  }

  soon(look: () => void): void {
    if (this.#soon !== undefined) throw new Error('two looks at once');
    this.#soon = look;
  }

  /** A reply leaves, and the next request comes after `ms`. True: the event loop was awake then. */
  exchange(ms: number): boolean {
    this.nowMs += REPLY_MS;
    this.polling.replied();
    const comesMs = this.nowMs + ms;
    while (this.#soon !== undefined && this.nowMs < comesMs) this.look();
    const isAwake = this.#soon !== undefined;
    this.nowMs = Math.max(this.nowMs, comesMs);
    this.polling.arrived();
    // What was asked for runs once more, and finds nothing to do
    while (this.#soon !== undefined) this.look();
    return isAwake;
  }

  look(): void {
    const look = this.#soon!;
    this.#soon = undefined;
    this.looks++;
    this.nowMs += LOOK_MS;
    look();
  }
}

function awake(loop: Loop, ms: number, times: number): number {
  let count = 0;
  for (let index = 0; index < times; index++) if (loop.exchange(ms)) count++;
  return count;
}

test('the event loop stays awake for a client that asks one thing after the other', (t) => {
  t.is(awake(new Loop(), 0.03, 1000), 1000);
});

test('where the next request keeps coming later, hardly any time is spent looking', (t) => {
  const loop = new Loop();
  t.is(awake(loop, 0.1, 10_000), 0);
  t.true(loop.looks < 300, `${loop.looks} looks`);
});

test('an idle client costs one look-out for each reply at most, of no more than the limit', (t) => {
  const loop = new Loop();
  loop.exchange(60_000);
  t.true(loop.looks <= Math.ceil(MAX_MS / LOOK_MS) + 1, `${loop.looks}`);
});

test('a client that gets faster is looked out for again', (t) => {
  const loop = new Loop();
  awake(loop, 0.2, 5000);
  awake(loop, 0.03, 1024);
  t.is(awake(loop, 0.03, 100), 100);
});

test('while most come in time, one that does not changes nothing', (t) => {
  const loop = new Loop();
  let inTime = 0;
  for (let round = 0; round < 100; round++) {
    inTime += awake(loop, 0.03, 9);
    loop.exchange(0.2);
  }
  t.is(inTime, 900);
});

test('a thread that has to wait for its core gives up looking, and tries again later', (t) => {
  const loop = new Loop();
  awake(loop, 0.03, 100);
  // Half of the time from here on
  let count = 0;
  for (let index = 0; index < 5000; index++) {
    loop.waited! += 0.02e6;
    if (loop.exchange(0.03)) count++;
  }
  t.true(count < 1000, `${count} of 5000 while others want the core`);
  awake(loop, 0.03, 4096);
  t.is(awake(loop, 0.03, 200), 200);
});

test('a system that does not tell of waiting is no reason to give up', (t) => {
  const loop = new Loop();
  loop.waited = undefined;
  t.is(awake(loop, 0.03, 500), 500);
});

test('with one core, or with no time for it, nothing is looked out for', (t) => {
  for (const loop of [new Loop(false), new Loop(true, 0)]) {
    t.is(awake(loop, 0.03, 100), 0);
    t.is(loop.looks, 0);
  }
});

test('a client that is gone is not looked out for', (t) => {
  const loop = new Loop();
  loop.polling.replied();
  loop.polling.stop();
  loop.look();
  t.throws(() => loop.look(), { instanceOf: TypeError });
});
