import test from 'ava';
import { WireError } from '../../../protocols/bytes/mod.ts';
import { formatNbdUri, parseNbdUri } from '../../../protocols/nbd/mod.ts';

test('C10: URIs are read as libnbd and qemu read them', (t) => {
  t.like(parseNbdUri('nbd://example.com'), {
    tls: false,
    address: { type: 'inet', host: 'example.com', port: 10809 },
    exportName: '',
  });
  t.like(parseNbdUri('nbd://[::1]:4711/a%20b/c'), {
    address: { type: 'inet', host: '::1', port: 4711 },
    exportName: 'a b/c',
  });
  t.like(parseNbdUri('nbd+unix:///disk?socket=/tmp/a%20b'), {
    address: { type: 'unix', path: '/tmp/a b' },
    exportName: 'disk',
  });
  t.like(parseNbdUri('nbd+unix://?socket=/tmp/s'), { address: { type: 'unix', path: '/tmp/s' }, exportName: '' });
  t.like(parseNbdUri('nbds://alice@host/'), { tls: true, user: 'alice', exportName: '' });
  t.like(parseNbdUri('nbd+vsock://3:1234/'), { address: { type: 'vsock', cid: 3, port: 1234 } });
  const psk = parseNbdUri('nbds+unix://alice@/x?socket=/s&tls-psk-file=/k');
  t.is(psk.parameters.get('tls-psk-file'), '/k');
  t.false(psk.parameters.has('socket'));
});

for (const [what, uri] of [
  ['another scheme', 'http://host/'],
  ['no scheme', '/tmp/socket'],
  ['a unix URI without a socket', 'nbd+unix:///x'],
  ['a unix URI with a host', 'nbd+unix://host/x?socket=/s'],
  ['a port above 65535', 'nbd://h:65536/'],
  ['port 0', 'nbd://h:0/'],
  ['a broken escape', 'nbd://h/%zz'],
  ['an escape that is not UTF-8', 'nbd://h/%ff'],
  ['NUL in the name', 'nbd://h/%00'],
  ['a parameter given twice', 'nbd+unix:///?socket=/a&socket=/b'],
  ['an export name above 4096 bytes', `nbd://h/${'x'.repeat(4097)}`],
  ['a vsock host that is no number', 'nbd+vsock://abc/'],
] as const) {
  test(`C10: refuses ${what}`, (t) => {
    t.throws(() => parseNbdUri(uri), { instanceOf: WireError, code: 'ERR_WIRE_TEXT' });
  });
}

test('formatNbdUri() gives what parseNbdUri() reads', (t) => {
  for (const uri of [
    'nbd://127.0.0.1/',
    'nbd://[::1]:99/a%20b',
    'nbd+unix:///x?socket=/tmp/s%3F',
    'nbd+vsock://2:5/',
  ]) {
    t.is(formatNbdUri(parseNbdUri(uri)), uri);
  }
});
