import test from 'ava';
import { GoldfishRtc, RtcAlarm } from '../../../../emulator/devices/goldfish_rtc/mod.ts';
import { StateError } from '../../../../emulator/state/state.ts';
import { FakeClock, RecordedLine, sharedWords } from '../../../macros/platform.ts';

function make() {
  const clock = new FakeClock();
  const line = new RecordedLine();
  const words = sharedWords(GoldfishRtc.WORDS);
  return { clock, line, words, rtc: new GoldfishRtc(words, line, clock) };
}

/** As a driver reads it: low half first */
function time(rtc: GoldfishRtc): bigint {
  const low = rtc.read(0, 4);
  return (BigInt(rtc.read(4, 4)) << 32n) | BigInt(low);
}

function arm(rtc: GoldfishRtc, at: bigint): void {
  rtc.write(0x0c, 4, Number(at >> 32n));
  rtc.write(0x08, 4, Number(at & 0xffff_ffffn));
}

test('GoldfishRtc: reads wall time, the high half as it was with the low one', (t) => {
  const { clock, rtc } = make();
  clock.wall = 0x17ff_ffff_ffffn;
  const low = rtc.read(0, 4);
  clock.wall += 1n;
  t.is(low, 0xffff_ffff);
  t.is(rtc.read(4, 4), 0x17ff);
  t.is(time(rtc), clock.wall);
});

test('GoldfishRtc: a guest sets the time, and it goes on from there, also after reset', (t) => {
  const { clock, rtc } = make();
  rtc.write(4, 4, 1);
  rtc.write(0, 4, 5);
  t.is(time(rtc), 0x1_0000_0005n);
  clock.wall += 10n;
  rtc.reset();
  t.is(time(rtc), 0x1_0000_000fn);
});

test('GoldfishRtc: the alarm rings when it is due, and only if enabled', (t) => {
  const { clock, line, rtc } = make();
  rtc.write(0x10, 4, 1);
  arm(rtc, clock.wall + 5_000_000n);
  t.is(rtc.read(0x18, 4), 1);
  t.is(rtc.checkAlarm(), 5);
  t.false(line.level);
  clock.wall += 5_000_000n;
  t.is(rtc.checkAlarm(), undefined);
  t.true(line.level);
  t.is(rtc.read(0x18, 4), 0);
  rtc.write(0x1c, 4, 1);
  t.false(line.level);
  rtc.write(0x10, 4, 0);
  arm(rtc, clock.wall - 1n);
  t.false(line.level);
  rtc.write(0x10, 4, 1);
  t.true(line.level);
});

test('GoldfishRtc: a cleared alarm does not ring; a reset forgets it', (t) => {
  const { clock, line, rtc } = make();
  rtc.write(0x10, 4, 1);
  arm(rtc, clock.wall + 100n);
  rtc.write(0x14, 4, 1);
  clock.wall += 200n;
  t.is(rtc.checkAlarm(), undefined);
  t.false(line.level);
  arm(rtc, clock.wall - 1n);
  t.true(line.level);
  rtc.reset();
  t.false(line.level);
  t.is(rtc.read(0x10, 4), 0);
});

test('GoldfishRtc: a guest that uses registers which do not exist, or other widths, does no harm', (t) => {
  const { line, rtc } = make();
  for (const offset of [0x20, 0x24, 0xffc]) {
    rtc.write(offset, 4, 0xffff_ffff);
    t.is(rtc.read(offset, 4), 0);
  }
  rtc.write(0x10, 1, 1);
  t.is(rtc.read(0x10, 4), 0);
  t.is(rtc.read(0, 2), 0);
  rtc.write(0x10, 4, 0xffff_fffe);
  t.is(rtc.read(0x10, 4), 0);
  arm(rtc, 0xffff_ffff_ffff_ffffn);
  t.true(rtc.checkAlarm()! > 0);
  t.false(line.level);
});

test('GoldfishRtc: state moves to another machine; a damaged one is refused', (t) => {
  const a = make();
  a.rtc.write(0, 4, 7);
  a.rtc.write(0x10, 4, 1);
  arm(a.rtc, 3n);
  const b = make();
  b.rtc.prepareState(a.rtc.saveState(), 1)();
  t.deepEqual(b.rtc.saveState(), a.rtc.saveState());
  t.true(b.line.level);
  const good = a.rtc.saveState() as Record<string, unknown>;
  t.throws(() => b.rtc.prepareState({ ...good, alarm: -1n }, 1), { instanceOf: StateError });
  t.throws(() => b.rtc.prepareState({ ...good, armed: 1 }, 1), { instanceOf: StateError });
  t.throws(() => b.rtc.prepareState(good, 0), { instanceOf: StateError });
});

test('RtcAlarm: an alarm armed by another thread rings without anybody reading', async (t) => {
  const { clock, line, words, rtc } = make();
  const alarm = new RtcAlarm(rtc);
  const guest = new GoldfishRtc(words, line, clock);
  await new Promise((resolve) => setTimeout(resolve, 5));
  guest.write(0x10, 4, 1);
  arm(guest, clock.wall + 20_000_000n);
  clock.wall += 20_000_000n;
  await new Promise((resolve) => setTimeout(resolve, 80));
  t.true(line.level);
  alarm.close();
});
