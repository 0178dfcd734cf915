import { resolve } from 'node:path';
import type { VncOptions } from '../services/supervisor/mod.ts';
import { KeyValues } from './key_value.ts';
import { parseInteger } from './numbers.ts';
import { UsageError } from './usage_error.ts';

// Where a machine's servers listen: the screen, the monitor.

const RFB_BASE_PORT = 5900;
const WEBSOCKET_BASE_PORT = 5700;

/** `[HOST]:N[,websocket=on|PORT]`. @throws UsageError */
export function parseVnc(value: string): VncOptions {
  const keys = new KeyValues('-vnc', value, 'address');
  const address = keys.require('address');
  const websocket = keys.take('websocket');
  keys.end();
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([^:]*)):([0-9]{1,5})$/.exec(address);
  const display = Number(match?.[3]);
  if (match === null || display + RFB_BASE_PORT > 65_535) {
    throw new UsageError(`Cannot use -vnc ${address}: expected [HOST]:N, N in 0..${65_535 - RFB_BASE_PORT}`);
  }
  const host = match[1] ?? match[2] ?? '';
  const webPort =
    websocket === undefined || websocket === 'off'
      ? undefined
      : websocket === 'on'
        ? WEBSOCKET_BASE_PORT + display
        : parseInteger('-vnc websocket=', websocket, 0, 65_535);
  // QEMU takes an empty host for any address; we take it for this one.
  return {
    host: host === '' ? '127.0.0.1' : host,
    port: RFB_BASE_PORT + display,
    ...(webPort === undefined ? {} : { webPort }),
  };
}

/** `unix:PATH[,server=on][,wait=off]`: the path. @throws UsageError */
export function parseQmp(value: string): string {
  const keys = new KeyValues('-qmp', value, 'address');
  const address = keys.require('address');
  if (!keys.flag('server', true)) throw new UsageError('Cannot use -qmp with server=off: it is a server');
  if (keys.flag('wait', false)) throw new UsageError('Cannot use -qmp with wait=on: it never waits; -S does');
  keys.end();
  if (!address.startsWith('unix:') || address.length === 5) {
    throw new UsageError(`Cannot open a monitor on ${address}: expected unix:PATH (its power is that of this account)`);
  }
  return resolve(address.slice(5));
}
