import test from 'ava';
import {
  type DisplayMessage,
  decodeDisplayMessage,
  encodeInputMessage,
  type InputMessage,
} from '../../../protocols/roles/display.ts';
import { attachDisplay, type DisplayLink } from '../../../services/machine/display_link.ts';
import { Channel, duplexPair } from '../../../services/shared/mod.ts';
import { RecordingKeyboard, RecordingTablet, TestCard } from '../../fixtures/display.ts';

class LinkRig {
  readonly card: TestCard;
  readonly keyboard = new RecordingKeyboard();
  readonly tablet = new RecordingTablet();
  readonly link: DisplayLink;
  readonly near: Channel;
  readonly far: Channel;
  readonly got: DisplayMessage[] = [];

  constructor(card: TestCard, highWaterMark = 1 << 16) {
    this.card = card;
    const [a, b] = duplexPair({ highWaterMark });
    this.near = new Channel(a, { name: 'machine' });
    this.far = new Channel(b, { name: 'console' });
    this.link = attachDisplay(this.near, card, this.keyboard, this.tablet);
    this.far.onFrame((type, payload) => this.got.push(decodeDisplayMessage(type, payload.slice())));
  }

  send(message: InputMessage): void {
    const frame = encodeInputMessage(message);
    this.far.send(frame.type, ...frame.parts);
  }

  types(): string[] {
    return this.got.map(({ type }) => type);
  }
  tilePixels(): number {
    return this.got.reduce((sum, m) => sum + (m.type === 'tile' ? m.width * m.height : 0), 0);
  }
}

async function until(what: string, check: () => boolean): Promise<void> {
  const end = performance.now() + 4000;
  while (!check()) {
    if (performance.now() > end) throw new Error(`Waited for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}
const pause = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms));

test('D2 nothing but the size goes out while nobody watches; then the whole picture, then what changes', async (t) => {
  const rig = new LinkRig(new TestCard(200, 100));
  rig.card.drawCard(1);
  await pause(60);
  t.deepEqual(rig.types(), ['surface']);
  rig.send({ type: 'watch', watching: true });
  await until('the picture', () => rig.types().includes('frame-end'));
  t.is(rig.tilePixels(), 200 * 100);
  rig.got.length = 0;
  rig.card.draw({ x: 70, y: 3, width: 2, height: 2 }, () => 0x010203);
  await until('the change', () => rig.types().includes('frame-end'));
  t.deepEqual(
    rig.got.filter((m) => m.type === 'tile').map((m) => [m.x, m.y, m.width, m.height]),
    [[64, 0, 64, 64]],
  );
  rig.send({ type: 'watch', watching: false });
  await pause(20);
  rig.got.length = 0;
  rig.card.drawCard(2);
  await pause(60);
  t.deepEqual(rig.types(), []);
  rig.near.close();
});

test('a refresh is answered with everything and its serial, watched or not', async (t) => {
  const rig = new LinkRig(new TestCard(100, 100));
  rig.send({ type: 'refresh', serial: 42 });
  await until('the answer', () => rig.got.some((m) => m.type === 'frame-end' && m.serial === 42));
  t.is(rig.tilePixels(), 100 * 100);
  rig.near.close();
});

test('D3 a console that does not read costs one frame, not a frame a draw', async (t) => {
  const rig = new LinkRig(new TestCard(640, 480), 1 << 14);
  rig.send({ type: 'watch', watching: true });
  await until('the first frame', () => rig.types().includes('frame-end'));
  rig.far.stream.pause();
  for (let i = 0; i < 50; i++) {
    rig.card.drawCard(i);
    await pause(1);
  }
  t.true(rig.near.stream.writableLength < 640 * 480 * 4, `${rig.near.stream.writableLength} bytes wait`);
  rig.got.length = 0;
  rig.far.stream.resume();
  await until('two ends', () => rig.types().filter((type) => type === 'frame-end').length >= 2);
  t.true(rig.tilePixels() <= 640 * 480 * 3);
  rig.near.close();
});

test('surfaces that do not hold together are shown as none', async (t) => {
  const pixels = new Uint8Array(100 * 100 * 4);
  for (const [name, surface] of [
    ['stride below width', { width: 100, height: 100, strideBytes: 399, pixels }],
    ['larger than its memory', { width: 100, height: 101, strideBytes: 400, pixels }],
    ['size 0', { width: 0, height: 0, strideBytes: 0, pixels }],
    ['65535 x 65535', { width: 65535, height: 65535, strideBytes: 65535 * 4, pixels }],
    ['a size that is not whole', { width: 1.5, height: 1, strideBytes: 400, pixels }],
  ] as const) {
    const rig = new LinkRig(new TestCard(64, 64));
    rig.send({ type: 'watch', watching: true });
    await until('a frame', () => rig.types().includes('frame-end'));
    rig.got.length = 0;
    rig.card.setSurface(surface);
    await until(name, () => rig.got.some((m) => m.type === 'surface'));
    t.like(rig.got[0], { type: 'surface', width: 0, height: 0 }, name);
    await pause(30);
    t.is(rig.tilePixels(), 0, name);
    rig.near.close();
  }
});

test('damage outside the surface, negative or without end is clipped', async (t) => {
  const rig = new LinkRig(new TestCard(100, 100));
  rig.send({ type: 'watch', watching: true });
  await until('a frame', () => rig.types().includes('frame-end'));
  rig.got.length = 0;
  for (const rectangle of [
    { x: 100, y: 0, width: 10, height: 10 },
    { x: -50, y: -50, width: 10, height: 10 },
    { x: 0, y: 0, width: 0, height: 5 },
    { x: Number.NaN, y: 0, width: 1, height: 1 },
  ]) {
    rig.card.events.next({ kind: 'damage', rectangle });
  }
  await pause(50);
  t.is(rig.tilePixels(), 0);
  rig.card.events.next({ kind: 'damage', rectangle: { x: -10, y: 90, width: 1e9, height: 1e9 } });
  await until('the rest', () => rig.types().includes('frame-end'));
  t.is(rig.tilePixels(), 100 * 36);
  rig.near.close();
});

test('D5 a thousand sizes in a row send a handful of surfaces, the last one last', async (t) => {
  const rig = new LinkRig(new TestCard(10, 10));
  rig.send({ type: 'watch', watching: true });
  for (let i = 1; i <= 1000; i++) rig.card.setSize(1 + (i % 50), 1 + (i % 30), 0);
  rig.card.setSize(77, 55);
  await until('the last', () => rig.got.some((m) => m.type === 'surface' && m.width === 77));
  await until('its picture', () => rig.got.at(-1)?.type === 'frame-end');
  t.true(rig.types().filter((type) => type === 'surface').length < 10);
  rig.near.close();
});

test('cursors that do not fit are hidden, lamps are passed on', async (t) => {
  const rig = new LinkRig(new TestCard(10, 10));
  const pixels = new Uint8Array(4);
  rig.card.setCursor({ width: 65535, height: 65535, hotX: 0, hotY: 0, pixels });
  await until('the cursor', () => rig.types().includes('cursor'));
  t.like(rig.got.at(-1), { type: 'cursor', width: 0, height: 0 });
  rig.card.setCursor({ width: 1, height: 1, hotX: 99, hotY: -4, pixels: Uint8Array.of(1, 2, 3, 4) });
  await until(
    'the second',
    () => rig.got.at(-1)?.type === 'cursor' && (rig.got.at(-1) as { width: number }).width === 1,
  );
  t.like(rig.got.at(-1), { hotX: 0, hotY: 0 });
  rig.keyboard.lamps.next(0xff);
  await until('lamps', () => rig.types().includes('leds'));
  t.like(rig.got.at(-1), { leds: 7 });
  rig.near.close();
});

test('input reaches keyboard, tablet and head; what is held is let go when the console dies', async (t) => {
  const rig = new LinkRig(new TestCard(10, 10));
  rig.send({ type: 'key', code: 30, down: true });
  rig.send({ type: 'key', code: 31, down: true });
  rig.send({ type: 'key', code: 31, down: false });
  rig.send({ type: 'pointer', x: 5, y: 6, buttons: 2 });
  rig.send({ type: 'wheel', vertical: 1, horizontal: -1 });
  rig.send({ type: 'resize', width: 800, height: 600 });
  await until('input', () => rig.card.sizeRequests.length === 1);
  rig.far.close();
  await until('release', () => rig.keyboard.keys.length === 4);
  t.deepEqual(rig.keyboard.keys, ['30+', '31+', '31-', '30-']);
  t.deepEqual(rig.tablet.events, ['5,6,2', 'wheel 1,-1', '5,6,0']);
  t.deepEqual(rig.card.sizeRequests, [[800, 600]]);
  t.false(rig.card.events.observed, 'nothing is left subscribed');
});

test('a console that sends what is not input loses its link, and the machine goes on', async (t) => {
  const rig = new LinkRig(new TestCard(10, 10));
  rig.far.send(32, Uint8Array.of(0xff, 0xff, 1));
  await until('the end', () => rig.near.closed);
  t.deepEqual(rig.keyboard.keys, []);
  rig.card.drawCard(1);
  t.pass();
});
