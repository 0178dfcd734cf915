import test, { type ExecutionContext } from 'ava';
import {
  decodeRequest,
  introspect,
  type JsonObject,
  parseJson,
  projectReturn,
  QMP_SCHEMA,
  QmpError,
  QmpRequestError,
  validateCommand,
} from '../../../protocols/qmp/mod.ts';

const bytes = (text: string) => new TextEncoder().encode(text);

function refuses(t: ExecutionContext, name: string, given: string, desc: string, errorClass = 'GenericError'): void {
  const error = t.throws(() => validateCommand(name, parseJson(bytes(given)) as JsonObject), { instanceOf: QmpError });
  t.is(error?.message, desc);
  t.is(error?.class, errorClass as never);
}

test('validateCommand() takes what the schema allows', (t) => {
  t.deepEqual({ ...validateCommand('migrate', parseJson(bytes('{"uri":"tcp:a:1"}')) as JsonObject) }, {
    name: 'migrate',
    arguments: Object.assign(Object.create(null), { uri: 'tcp:a:1' }),
  } as never);
  t.notThrows(() => validateCommand('stop', undefined));
});

// Texts are those of QEMU 7.2: clients show them, some match on them.
test('validateCommand() refuses an unknown command', (t) =>
  refuses(t, 'nope', '{}', 'The command nope has not been found', 'CommandNotFound'));
test('validateCommand() refuses a command named like a property of objects', (t) => {
  refuses(t, 'constructor', '{}', 'The command constructor has not been found', 'CommandNotFound');
  refuses(t, '__proto__', '{}', 'The command __proto__ has not been found', 'CommandNotFound');
});
test('validateCommand() refuses an unexpected argument', (t) =>
  refuses(t, 'query-status', '{"x":1}', "Parameter 'x' is unexpected"));
test('validateCommand() refuses a missing argument', (t) => refuses(t, 'migrate', '{}', "Parameter 'uri' is missing"));
test('validateCommand() refuses an argument of another type', (t) =>
  refuses(t, 'migrate', '{"uri":1}', "Invalid parameter type for 'uri', expected: string"));
test('validateCommand() refuses null for an optional argument', (t) =>
  refuses(t, 'nbd-server-add', '{"device":"a","name":null}', "Invalid parameter type for 'name', expected: string"));
test('validateCommand() refuses an unknown enum value, also of a union', (t) => {
  refuses(t, 'screendump', '{"filename":"/a","format":"gif"}', "Parameter 'format' does not accept value 'gif'");
  refuses(
    t,
    'nbd-server-start',
    '{"addr":{"type":"zork","data":{}}}',
    "Parameter 'addr.type' does not accept value 'zork'",
  );
});
test('validateCommand() names the path inside a union', (t) => {
  refuses(t, 'nbd-server-start', '{"addr":{"type":"unix","data":{}}}', "Parameter 'addr.data.path' is missing");
  refuses(
    t,
    'nbd-server-start',
    '{"addr":{"type":"unix","data":{"path":"/x","y":1}}}',
    "Parameter 'addr.data.y' is unexpected",
  );
  refuses(t, 'nbd-server-start', '{"addr":{}}', "Parameter 'addr.type' is missing");
  refuses(t, 'nbd-server-start', '{"addr":[]}', "Invalid parameter type for 'addr', expected: object");
});
test('validateCommand() refuses integers out of range, fractions and 2^64', (t) => {
  refuses(
    t,
    'migrate-set-parameters',
    '{"downtime-limit":-1}',
    "Parameter 'downtime-limit' expects 0..9007199254740991",
  );
  refuses(
    t,
    'migrate-set-parameters',
    '{"downtime-limit":1.5}',
    "Invalid parameter type for 'downtime-limit', expected: integer",
  );
  refuses(t, 'migrate-set-parameters', '{"max-cpu-throttle":256}', "Parameter 'max-cpu-throttle' expects 0..255");
  refuses(
    t,
    'migrate-set-parameters',
    '{"max-bandwidth":18446744073709551615}',
    "Parameter 'max-bandwidth' expects 0..9007199254740991",
  );
});
test('validateCommand() refuses text with NUL or a line end, and text of 5000 bytes', (t) => {
  refuses(t, 'migrate', '{"uri":"a\\u0000b"}', "Parameter 'uri' has a control character");
  refuses(t, 'screendump', '{"filename":"/a\\ninfo status"}', "Parameter 'filename' has a control character");
  refuses(t, 'migrate', `{"uri":"${'x'.repeat(5000)}"}`, "Parameter 'uri' is too long: 5000 bytes, limit is 4096");
});
test('validateCommand() refuses a wrong item of a list', (t) =>
  refuses(t, 'qmp_capabilities', '{"enable":["foo"]}', "Parameter 'enable' does not accept value 'foo'"));

function refusesRequest(t: ExecutionContext, text: string, desc: string, id?: unknown): void {
  const error = t.throws(() => decodeRequest(bytes(text)), { instanceOf: QmpError });
  t.is(error?.message, desc);
  t.deepEqual(error instanceof QmpRequestError ? error.id : undefined, id as never);
}
test('decodeRequest() refuses what is not an object', (t) => {
  for (const text of ['[]', '1', '"x"', 'null']) refusesRequest(t, text, 'QMP input must be a JSON object');
});
test('decodeRequest() refuses a request without execute, and echoes its id', (t) => {
  refusesRequest(t, '{"id":7}', "QMP input lacks member 'execute'", 7);
  refusesRequest(t, '{"execute":{},"id":7}', "QMP input member 'execute' must be a string", 7);
  refusesRequest(t, '{"execute":"stop","arguments":[],"id":7}', "QMP input member 'arguments' must be an object", 7);
  refusesRequest(t, '{"execute":"stop","foo":1,"id":7}', "QMP input member 'foo' is unexpected", 7);
  refusesRequest(t, '{"exec-oob":"stop","id":7}', "QMP input member 'exec-oob' is unexpected", 7);
});
test('decodeRequest() refuses an id of 1 MiB', (t) =>
  refusesRequest(
    t,
    `{"execute":"stop","id":"${'x'.repeat(5000)}"}`,
    "QMP input member 'id' is too long: limit is 4096 bytes",
  ));

test('projectReturn() leaves out what the schema does not have, and refuses wrong types', (t) => {
  t.deepEqual({ ...projectReturn('query-migrate', { status: 'active', secret: 1, 'total-time': 5 }) }, {
    status: 'active',
    'total-time': 5,
  } as never);
  t.throws(() => projectReturn('query-migrate', { status: '<script>' }), { instanceOf: QmpError });
  t.throws(() => projectReturn('query-migrate', { ram: new Uint8Array(5) }), { instanceOf: QmpError });
  t.throws(() => projectReturn('query-migrate', null), { instanceOf: QmpError });
});

test('every type that the schema names exists, and every union has a variant for each value', (t) => {
  const infos = introspect();
  const names = new Set(
    infos.filter((info) => !['command', 'event'].includes(info['meta-type'])).map(({ name }) => name),
  );
  t.is(names.size, infos.length - Object.keys(QMP_SCHEMA.commands).length - Object.keys(QMP_SCHEMA.events).length);
  const uses = infos.flatMap((info) => [
    ...['arg-type', 'ret-type', 'element-type'].flatMap((key) => (info[key] === undefined ? [] : [info[key]])),
    ...((info.members ?? []) as { type?: string }[]).flatMap(({ type }) => type ?? []),
    ...((info.variants ?? []) as { type: string }[]).map(({ type }) => type),
  ]);
  for (const use of uses) t.true(names.has(use as string), String(use));
});

test('introspect() describes migrate, SHUTDOWN and the address union as QEMU does', (t) => {
  const infos = new Map(introspect().map((info) => [info.name, info]));
  const migrate = infos.get('migrate')!;
  t.is(migrate['meta-type'], 'command');
  t.deepEqual(infos.get(migrate['arg-type'] as string)!.members, [{ name: 'uri', type: 'str' }]);
  t.deepEqual(infos.get('str'), { name: 'str', 'meta-type': 'builtin', 'json-type': 'string' });
  const start = infos.get(infos.get('nbd-server-start')!['arg-type'] as string)!;
  const addr = (start.members as { name: string; type: string }[]).find(({ name }) => name === 'addr')!;
  t.is(infos.get(addr.type)!.tag, 'type');
  t.deepEqual(
    (infos.get(addr.type)!.variants as { case: string }[]).map((variant) => variant.case),
    ['inet', 'unix'],
  );
});
