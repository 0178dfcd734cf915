import { readFileSync } from 'node:fs';
import test from 'ava';
import { keysymToKey, scancodeToEvdev } from '../../../protocols/rfb/mod.ts';

test('scancodeToEvdev() where the two numberings are one', (t) => {
  for (let code = 1; code <= 0x53; code++) t.is(scancodeToEvdev(code), code);
  for (let code = 0x56; code <= 0x58; code++) t.is(scancodeToEvdev(code), code);
});

test('scancodeToEvdev() where they differ', (t) => {
  const expected: Record<number, number> = {
    84: 99,
    89: 117,
    92: 95,
    112: 93,
    115: 89,
    121: 92,
    123: 94,
    125: 124,
    156: 96,
    157: 97,
    181: 98,
    183: 99,
    184: 100,
    198: 119,
    199: 102,
    200: 103,
    201: 104,
    203: 105,
    205: 106,
    207: 107,
    208: 108,
    209: 109,
    210: 110,
    211: 111,
    219: 125,
    220: 126,
    221: 127,
    222: 116,
  };
  for (const [code, evdev] of Object.entries(expected)) t.is(scancodeToEvdev(Number(code)), evdev, code);
});

for (const code of [0, -1, 0xff, 0x100, 0xffff, 0xffff_ffff, 1.5, Number.NaN]) {
  test(`scancodeToEvdev() gives nothing for ${code}`, (t) => t.is(scancodeToEvdev(code), undefined));
}

test('scancodeToEvdev() agrees with every key that noVNC can send', (t) => {
  const source = readFileSync(new URL(import.meta.resolve('@novnc/novnc')), 'utf8');
  t.true(source.length > 0);
  const table = readFileSync(new URL('./input/xtscancodes.js', import.meta.resolve('@novnc/novnc')), 'utf8');
  const rows = [...table.matchAll(/"(\w+)": 0x([0-9a-f]+), .* linux:(\d+) /g)];
  t.true(rows.length > 130);
  for (const [, name, code, linux] of rows) {
    const set1 = Number.parseInt(code!, 16);
    const onWire = set1 > 0xff ? (set1 & 0x7f) | 0x80 : set1;
    t.is(scancodeToEvdev(onWire), Number(linux), name);
  }
});

test('keysymToKey() finds every printable character of a US keyboard', (t) => {
  for (let point = 0x20; point <= 0x7e; point++) t.not(keysymToKey(point), undefined, String.fromCharCode(point));
  t.deepEqual(keysymToKey(0x61), { evdev: 30, shift: false });
  t.deepEqual(keysymToKey(0x41), { evdev: 30, shift: true });
  t.deepEqual(keysymToKey('~'.charCodeAt(0)), { evdev: 41, shift: true });
  t.deepEqual(keysymToKey('?'.charCodeAt(0)), { evdev: 53, shift: true });
  t.deepEqual(keysymToKey('_'.charCodeAt(0)), { evdev: 12, shift: true });
  t.deepEqual(keysymToKey('>'.charCodeAt(0)), { evdev: 52, shift: true });
});

test('keysymToKey() finds named keys and Unicode keysyms', (t) => {
  t.is(keysymToKey(0xff0d)?.evdev, 28);
  t.is(keysymToKey(0xffbe)?.evdev, 59);
  t.is(keysymToKey(0xffc9)?.evdev, 88);
  t.is(keysymToKey(0xffff)?.evdev, 111);
  t.deepEqual(keysymToKey(0x0100_0041), { evdev: 30, shift: true });
});

for (const keysym of [0, 0xe4, 0x20ac, 0x0100_20ac, 0x1_0000, 0xffff_ffff]) {
  test(`keysymToKey() gives nothing for 0x${keysym.toString(16)}`, (t) => t.is(keysymToKey(keysym), undefined));
}
