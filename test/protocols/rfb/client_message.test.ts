import test from 'ava';
import { FrameDecoder, WireError, type WireErrorCode } from '../../../protocols/bytes/mod.ts';
import {
  type ClientMessage,
  clientMessageSize,
  clipRegion,
  decodeClientMessage,
  isValidLayout,
  MAX_CLIENT_MESSAGE_BYTES,
  type NegotiatedInput,
} from '../../../protocols/rfb/mod.ts';
import { refusesEveryTruncation, sameForAnySplit, survivesEveryByteChange } from '../../macros/codec.ts';

const everything: NegotiatedInput = {
  extendedKeyEvent: true,
  extendedMouseButtons: true,
  fence: true,
  continuousUpdates: true,
  extendedDesktopSize: true,
};
const nothing: NegotiatedInput = {
  extendedKeyEvent: false,
  extendedMouseButtons: false,
  fence: false,
  continuousUpdates: false,
  extendedDesktopSize: false,
};
const hex = (text: string) => new Uint8Array(Buffer.from(text.replaceAll(' ', ''), 'hex'));

const GOLDEN: readonly (readonly [string, string, ClientMessage])[] = [
  [
    'SetPixelFormat as noVNC sends it',
    '00 000000 20 18 00 01 00ff 00ff 00ff 00 08 10 000000',
    {
      type: 'set-pixel-format',
      format: {
        bitsPerPixel: 32,
        depth: 24,
        bigEndian: false,
        trueColour: true,
        redMax: 255,
        greenMax: 255,
        blueMax: 255,
        redShift: 0,
        greenShift: 8,
        blueShift: 16,
      },
    },
  ],
  ['SetEncodings', '02 00 0003 00000010 00000000 ffffff20', { type: 'set-encodings', encodings: [16, 0, -224] }],
  ['SetEncodings with none', '02 00 0000', { type: 'set-encodings', encodings: [] }],
  [
    'FramebufferUpdateRequest',
    '03 01 0001 0002 0280 01e0',
    { type: 'update-request', incremental: true, x: 1, y: 2, width: 640, height: 480 },
  ],
  ['KeyEvent', '04 01 0000 00000061', { type: 'key', down: true, keysym: 0x61, scancode: 0 }],
  [
    'QEMU extended key event as noVNC sends it for KeyA',
    'ff 00 0001 00000061 0000001e',
    { type: 'key', down: true, keysym: 0x61, scancode: 0x1e },
  ],
  ['PointerEvent', '05 05 0010 0020', { type: 'pointer', x: 16, y: 32, buttons: 5 }],
  ['PointerEvent with extended buttons', '05 81 0010 0020 03', { type: 'pointer', x: 16, y: 32, buttons: 0x181 }],
  ['ClientCutText', '06 000000 00000003 616263', { type: 'cut-text', text: hex('616263') }],
  ['ClientCutText of no length is "", not nothing', '06 000000 00000000', { type: 'cut-text', text: hex('') }],
  [
    'EnableContinuousUpdates',
    '96 01 0000 0000 0280 01e0',
    { type: 'continuous-updates', enable: true, x: 0, y: 0, width: 640, height: 480 },
  ],
  ['ClientFence', 'f8 000000 80000001 02 abcd', { type: 'fence', flags: 0x80000001, payload: hex('abcd') }],
  [
    'SetDesktopSize',
    'fb 00 0400 0300 01 00 00000007 0000 0000 0400 0300 00000000',
    {
      type: 'set-desktop-size',
      width: 1024,
      height: 768,
      screens: [{ id: 7, x: 0, y: 0, width: 1024, height: 768, flags: 0 }],
    },
  ],
];

function decoder(negotiated: NegotiatedInput): FrameDecoder {
  return new FrameDecoder({
    name: 'test',
    maxFrameBytes: MAX_CLIENT_MESSAGE_BYTES,
    frameSize: (head) => clientMessageSize(head, negotiated),
  });
}

for (const [name, text, expected] of GOLDEN) {
  test(`decodeClientMessage() ${name}`, (t) => {
    const bytes = hex(text);
    const message = decodeClientMessage(bytes, everything);
    t.deepEqual({ ...message } as unknown, { ...expected } as unknown);
    refusesEveryTruncation(t, bytes, (cut) => decodeClientMessage(cut, everything));
    survivesEveryByteChange(t, bytes, (changed) => {
      const frames = decoder(everything);
      frames.push(changed);
      for (let f = frames.next(); f !== undefined; f = frames.next()) decodeClientMessage(f, everything);
    });
  });
}

test('T2 a session in one chunk, byte by byte and split anywhere gives the same messages', (t) => {
  const stream = hex(GOLDEN.map(([, text]) => text).join(''));
  sameForAnySplit(t, stream, (chunks) => {
    const frames = decoder(everything);
    const out: string[] = [];
    for (const chunk of chunks) {
      frames.push(chunk);
      for (let f = frames.next(); f !== undefined; f = frames.next()) {
        out.push(JSON.stringify(decodeClientMessage(f, everything)));
      }
    }
    return out;
  });
  t.is(stream.length, hex(GOLDEN.map(([, text]) => text).join('')).length);
});

const REFUSED: readonly (readonly [string, string, NegotiatedInput, WireErrorCode])[] = [
  ['SetEncodings of 65535', '02 00 ffff', everything, 'ERR_WIRE_LIMIT'],
  ['ClientCutText of 0x7fffffff bytes', '06 000000 7fffffff', everything, 'ERR_WIRE_LIMIT'],
  ['ClientCutText of one byte too many', '06 000000 00100001', everything, 'ERR_WIRE_LIMIT'],
  ['ClientCutText of length -1', '06 000000 ffffffff', everything, 'ERR_WIRE_STATE'],
  ['ClientCutText of length 0x80000000', '06 000000 80000000', everything, 'ERR_WIRE_STATE'],
  ['extended clipboard that was not negotiated', '06 000000 fffffffc', everything, 'ERR_WIRE_STATE'],
  ['fence of 255 bytes', 'f8 000000 00000000 ff', everything, 'ERR_WIRE_LIMIT'],
  ['fence of 65 bytes', 'f8 000000 00000000 41', everything, 'ERR_WIRE_LIMIT'],
  ['SetDesktopSize of 255 screens', 'fb 00 0400 0300 ff', everything, 'ERR_WIRE_LIMIT'],
  ['fence that was not negotiated', 'f8 000000 00000000 00', nothing, 'ERR_WIRE_STATE'],
  ['continuous updates that were not negotiated', '96 01', nothing, 'ERR_WIRE_STATE'],
  ['SetDesktopSize that was not negotiated', 'fb 00', nothing, 'ERR_WIRE_STATE'],
  ['extended key that was not negotiated', 'ff 00', nothing, 'ERR_WIRE_STATE'],
  ['QEMU audio', 'ff 01', everything, 'ERR_WIRE_VALUE'],
  ['xvp', 'fa 00', everything, 'ERR_WIRE_VALUE'],
  ['gii', 'fd 00', everything, 'ERR_WIRE_VALUE'],
  ['message type 1', '01', everything, 'ERR_WIRE_VALUE'],
  ['text chat', '0b', everything, 'ERR_WIRE_VALUE'],
  ['TLS where RFB is spoken', '16 0301', everything, 'ERR_WIRE_VALUE'],
];

for (const [name, text, negotiated, code] of REFUSED) {
  test(`clientMessageSize() refuses ${name} before a byte of it is buffered`, (t) => {
    const frames = decoder(negotiated);
    const error = t.throws(
      () => {
        frames.push(hex(text));
        frames.next();
      },
      { instanceOf: WireError },
    );
    t.is(error?.code, code);
  });
}

test('button bit 7 without negotiation is a six-byte message and no button', (t) => {
  const bytes = hex('05 80 0001 0002');
  t.deepEqual(clientMessageSize(bytes, nothing), { bytes: 6 });
  t.like(decodeClientMessage(bytes, nothing), { type: 'pointer', buttons: 0 });
});

test('clipRegion() clips what reaches beyond, refuses what lies outside or is empty', (t) => {
  t.deepEqual(clipRegion({ x: 10, y: 20, width: 0xffff, height: 0xffff }, 640, 480), {
    x: 10,
    y: 20,
    width: 630,
    height: 460,
  });
  t.is(clipRegion({ x: 640, y: 0, width: 1, height: 1 }, 640, 480), undefined);
  t.is(clipRegion({ x: 0xffff, y: 0xffff, width: 0xffff, height: 0xffff }, 640, 480), undefined);
  t.is(clipRegion({ x: 0, y: 0, width: 0, height: 10 }, 640, 480), undefined);
});

const screen = { id: 1, x: 0, y: 0, width: 100, height: 100, flags: 0 };
for (const [name, valid, width, height, screens] of [
  ['one screen that fills it', true, 100, 100, [screen]],
  ['two side by side', true, 200, 100, [screen, { ...screen, id: 2, x: 100 }]],
  ['no screen', false, 100, 100, []],
  ['size 0', false, 0, 100, [screen]],
  ['a screen outside', false, 100, 100, [{ ...screen, x: 100 }]],
  ['a screen that reaches out', false, 100, 100, [{ ...screen, x: 1 }]],
  ['a screen without width', false, 100, 100, [{ ...screen, width: 0 }]],
  ['an id twice', false, 200, 100, [screen, { ...screen, x: 100 }]],
] as const) {
  test(`isValidLayout() ${valid ? 'accepts' : 'refuses'} ${name}`, (t) => {
    t.is(isValidLayout(width, height, screens), valid);
  });
}
