import test from 'ava';
import { WireError } from '../../../protocols/bytes/mod.ts';
import { decodeVersion, SecurityType, ServerHandshake } from '../../../protocols/rfb/mod.ts';

const ascii = (text: string) => new TextEncoder().encode(text);
const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex');
const none = { securityTypes: [SecurityType.none] };
const challenge = new Uint8Array(16).fill(7);
const withPassword = {
  securityTypes: [SecurityType.vncAuthentication],
  challenge: () => challenge,
  checkResponse: (_given: Uint8Array, response: Uint8Array) => response[0] === 1,
};

for (const [text, version] of [
  ['RFB 003.003\n', '3.3'],
  ['RFB 003.004\n', '3.3'],
  ['RFB 003.005\n', '3.3'],
  ['RFB 003.006\n', '3.3'],
  ['RFB 003.007\n', '3.7'],
  ['RFB 003.008\n', '3.8'],
  ['RFB 003.889\n', '3.8'],
] as const) {
  test(`T5 decodeVersion() reads ${text.trim()} as ${version}`, (t) => t.is(decodeVersion(ascii(text)), version));
}

for (const text of [
  'RFB 003.002\n',
  'RFB 003.009\n',
  'RFB 004.001\n',
  'RFB 000.000\n',
  'GET / HTTP/1',
  'RFB 003.008 ',
]) {
  test(`T5 decodeVersion() refuses ${JSON.stringify(text)}`, (t) => {
    t.throws(() => decodeVersion(ascii(text)), { instanceOf: WireError });
  });
}

test('T5 an unknown version gets a reason that a 3.7 client can read, and the end', (t) => {
  const handshake = new ServerHandshake(none);
  const step = handshake.receive(ascii('RFB 009.009\n'));
  t.is(step.state, 'failed');
  t.is(step.send[0], 0);
  const length = new DataView(step.send.buffer, step.send.byteOffset).getUint32(1);
  t.is(step.send.length, 5 + length);
  t.regex(Buffer.from(step.send.subarray(5)).toString(), /RFB 9\.9/);
  t.throws(() => handshake.receive(ascii('RFB 003.008\n')), { code: 'ERR_WIRE_STATE' });
});

test('S1 3.8 with None: types, pick, result 0, shared flag', (t) => {
  const handshake = new ServerHandshake(none);
  t.is(Buffer.from(handshake.greeting).toString(), 'RFB 003.008\n');
  t.is(handshake.expectedBytes, 12);
  t.is(hex(handshake.receive(ascii('RFB 003.008\n')).send), '0101');
  t.is(hex(handshake.receive(Uint8Array.of(1)).send), '00000000');
  t.like(handshake.receive(Uint8Array.of(0)), { state: 'done', shared: false });
});

test('S1 3.7 with None: no SecurityResult', (t) => {
  const handshake = new ServerHandshake(none);
  t.is(hex(handshake.receive(ascii('RFB 003.007\n')).send), '0101');
  t.is(hex(handshake.receive(Uint8Array.of(1)).send), '');
  t.like(handshake.receive(Uint8Array.of(1)), { state: 'done', shared: true });
});

test('S1 3.3 with None: the server decides, in four bytes', (t) => {
  const handshake = new ServerHandshake(none);
  t.is(hex(handshake.receive(ascii('RFB 003.003\n')).send), '00000001');
  t.is(handshake.state, 'client-init');
});

for (const picked of [0, 2, 5, 16, 19, 255]) {
  test(`S7 type ${picked} that was not offered is refused with a reason in 3.8`, (t) => {
    const handshake = new ServerHandshake(none);
    handshake.receive(ascii('RFB 003.008\n'));
    const step = handshake.receive(Uint8Array.of(picked));
    t.is(step.state, 'failed');
    t.is(hex(step.send.subarray(0, 4)), '00000001');
    t.true(step.send.length > 8);
    t.is(step.failure?.code, 'ERR_WIRE_VALUE');
  });
}

test('S7 None is refused where only VNC authentication is offered', (t) => {
  const handshake = new ServerHandshake(withPassword);
  t.is(hex(handshake.receive(ascii('RFB 003.008\n')).send), '0102');
  t.is(handshake.receive(Uint8Array.of(1)).state, 'failed');
});

test('S7 several types are offered at once, and each may be picked', (t) => {
  for (const picked of [1, 2]) {
    const handshake = new ServerHandshake({ ...withPassword, securityTypes: [2, 1] });
    t.is(hex(handshake.receive(ascii('RFB 003.008\n')).send), '020201');
    t.is(handshake.receive(Uint8Array.of(picked)).state, picked === 1 ? 'client-init' : 'response');
  }
});

test('S2 VNC authentication: challenge, then result 0 or 1 with a reason', (t) => {
  for (const good of [true, false]) {
    const handshake = new ServerHandshake(withPassword);
    handshake.receive(ascii('RFB 003.008\n'));
    t.is(hex(handshake.receive(Uint8Array.of(2)).send), hex(challenge));
    t.is(handshake.expectedBytes, 16);
    const step = handshake.receive(new Uint8Array(16).fill(good ? 1 : 0));
    t.is(step.state, good ? 'client-init' : 'failed');
    t.is(hex(step.send.subarray(0, 4)), good ? '00000000' : '00000001');
  }
});

test('S2 a 3.3 client of a server with a password gets the challenge, never None', (t) => {
  const handshake = new ServerHandshake(withPassword);
  t.is(hex(handshake.receive(ascii('RFB 003.003\n')).send), `00000002${hex(challenge)}`);
  const step = handshake.receive(new Uint8Array(16));
  t.is(step.state, 'failed');
  t.is(hex(step.send), '00000001', 'no reason before 3.8');
});

test('a server cannot be made to offer nothing, or a type that it does not have', (t) => {
  t.throws(() => new ServerHandshake({ securityTypes: [] }), { instanceOf: RangeError });
  t.throws(() => new ServerHandshake({ securityTypes: [19] }), { instanceOf: RangeError });
  t.throws(() => new ServerHandshake({ securityTypes: [2] }), { instanceOf: RangeError });
});
