import test, { type ExecutionContext } from 'ava';
import { parseVmArguments } from '../../cli/options.ts';
import { UsageError } from '../../cli/usage_error.ts';

const parse = (line: string) => parseVmArguments(line.split(' ').filter((word) => word !== '')).options;

function refuses(t: ExecutionContext, line: string, text: RegExp): void {
  t.regex(t.throws(() => parse(line), { instanceOf: UsageError }, line)?.message ?? '', text);
}

test('-vnc takes QEMU’s displays', (t) => {
  t.deepEqual(parse('-vnc :1').vnc, { host: '127.0.0.1', port: 5901 });
  t.deepEqual(parse('-vnc 127.0.0.2:0,websocket=on').vnc, { host: '127.0.0.2', port: 5900, webPort: 5700 });
  t.deepEqual(parse('-vnc [::1]:3,websocket=0').vnc, { host: '::1', port: 5903, webPort: 0 });
  t.true(parse('-nographic -vnc :0').display);
});
test('-vnc refuses a display beyond the ports and a missing one', (t) => {
  refuses(t, '-vnc :60000', /N in 0/);
  refuses(t, '-vnc localhost', /expected \[HOST\]:N/);
  refuses(t, '-vnc :0,tls=on', /tls=: unknown/);
});
test('-qmp refuses TCP, and words that mean something else', (t) => {
  t.deepEqual(parse('-qmp unix:/a,server=on,wait=off -qmp unix:/b,server,wait=off').qmp, ['/a', '/b']);
  refuses(t, '-qmp tcp:localhost:4444', /expected unix:PATH/);
  refuses(t, '-qmp unix:/a,server=off', /it is a server/);
  refuses(t, '-qmp unix:/a,wait=on', /never waits/);
});
