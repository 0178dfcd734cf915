import test from 'ava';
import { WireError } from '../../../protocols/bytes/mod.ts';
import {
  type DisplayMessage,
  decodeDisplayMessage,
  decodeInputMessage,
  encodeDisplayMessage,
  encodeInputMessage,
  type InputMessage,
} from '../../../protocols/roles/display.ts';
import { refusesEveryTruncation, survivesEveryByteChange } from '../../macros/codec.ts';

const join = (parts: readonly Uint8Array[]) => new Uint8Array(Buffer.concat(parts));

const DISPLAY: readonly DisplayMessage[] = [
  { type: 'surface', width: 1024, height: 768 },
  { type: 'surface', width: 0, height: 0 },
  { type: 'tile', x: 64, y: 128, width: 2, height: 1, pixels: Uint8Array.of(1, 2, 3, 0, 4, 5, 6, 0) },
  { type: 'frame-end', serial: 7 },
  { type: 'cursor', width: 1, height: 1, hotX: 0, hotY: 0, pixels: Uint8Array.of(1, 2, 3, 255) },
  { type: 'cursor', width: 0, height: 0, hotX: 0, hotY: 0, pixels: new Uint8Array(0) },
  { type: 'cursor-position', x: -5, y: 70_000 },
  { type: 'leds', leds: 5 },
];
const INPUT: readonly InputMessage[] = [
  { type: 'key', code: 30, down: true },
  { type: 'pointer', x: 32767, y: 0, buttons: 0x1f },
  { type: 'wheel', vertical: -1, horizontal: 127 },
  { type: 'resize', width: 1280, height: 800 },
  { type: 'refresh', serial: 0xffff_ffff },
  { type: 'watch', watching: false },
];

for (const message of DISPLAY) {
  test(`display link round trip: ${JSON.stringify(message)}`, (t) => {
    const frame = encodeDisplayMessage(message);
    const payload = join(frame.parts);
    t.deepEqual(decodeDisplayMessage(frame.type, payload), message);
    refusesEveryTruncation(t, payload, (bytes) => decodeDisplayMessage(frame.type, bytes));
    survivesEveryByteChange(t, payload, (bytes) => decodeDisplayMessage(frame.type, bytes));
  });
}
for (const message of INPUT) {
  test(`input round trip: ${JSON.stringify(message)}`, (t) => {
    const frame = encodeInputMessage(message);
    const payload = join(frame.parts);
    t.deepEqual(decodeInputMessage(frame.type, payload), message);
    refusesEveryTruncation(t, payload, (bytes) => decodeInputMessage(frame.type, bytes));
    survivesEveryByteChange(t, payload, (bytes) => decodeInputMessage(frame.type, bytes));
  });
}

const hex = (text: string) => new Uint8Array(Buffer.from(text.replaceAll(' ', ''), 'hex'));
for (const [name, type, payload] of [
  ['key code 0', 32, '0000 01'],
  ['key code 768', 32, '0300 01'],
  ['key that is neither up nor down', 32, '001e 02'],
  ['pointer beyond 32767', 33, '8000 0000 00'],
  ['a sixth button', 33, '0000 0000 20'],
  ['128 detents', 34, '00000080 00000000'],
  ['a size of 0', 35, '0000 0300'],
  ['a size of 65535', 35, 'ffff ffff'],
  ['16384 x 16384', 35, '4000 4000'],
  ['a tile sent by a console', 2, '0000 0000 0001 0001 00000000'],
  ['message type 99', 99, ''],
] as const) {
  test(`decodeInputMessage() refuses ${name}`, (t) => {
    t.throws(() => decodeInputMessage(type, hex(payload)), { instanceOf: WireError });
  });
}
for (const [name, type, payload] of [
  ['a surface of 65535 x 65535', 1, 'ffff ffff'],
  ['a surface without height', 1, '0280 0000'],
  ['an empty tile', 2, '0000 0000 0000 0001'],
  ['a tile of 65535 x 65535', 2, '0000 0000 ffff ffff'],
  ['a cursor of 65535 x 65535', 4, 'ffff ffff 0000 0000'],
  ['a key sent by a machine', 32, '001e 01'],
] as const) {
  test(`decodeDisplayMessage() refuses ${name}`, (t) => {
    t.throws(() => decodeDisplayMessage(type, hex(payload)), { instanceOf: WireError });
  });
}
