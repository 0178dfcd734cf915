import { MAX_NAME_BYTES } from '../../protocols/rfb/mod.ts';
import { MAX_SOCKET_PATH_BYTES } from '../shared/socket_path.ts';
import { isLoopback } from './access.ts';
import type { BindAddress } from './bind.ts';

/** A parameter of a role's method is not what the method takes; our own supervisor or a library user is wrong. */
export class ParameterError extends TypeError {
  override readonly name = 'ParameterError';
  readonly code = 'ERR_PARAMETER';
}

export interface ListenParams {
  /** `web`: page, noVNC and WebSocket on one port; `rfb`: plain RFB */
  readonly transport: 'web' | 'rfb';
  readonly address: BindAddress;
  readonly viewOnly: boolean;
  /** The token is spent by the first page that uses it */
  readonly oneTime: boolean;
  /** Names beside the loopback ones that may stand in Host */
  readonly allowedHosts: readonly string[];
  /** For `rfb`: VNC authentication, at most eight characters count */
  readonly password: string | undefined;
}

const MAX_HOSTS = 16;

/** Fields of an object that came from another role; nothing is taken for granted. */
export function fields(params: unknown, method: string): Map<string, unknown> {
  if (params === undefined || params === null) return new Map();
  if (typeof params !== 'object' || Array.isArray(params)) {
    throw new ParameterError(`Cannot ${method}: parameters are not an object`);
  }
  return new Map(Object.entries(params));
}

/**
 * Shape and policy of `listen`. Beyond loopback `allowRemote` must be there, and plain RFB also needs a password.
 * @throws ParameterError
 */
export function parseListen(params: unknown): ListenParams {
  const given = fields(params, 'listen');
  const transport = text(given, 'transport', 16) ?? 'web';
  if (transport !== 'web' && transport !== 'rfb') {
    throw new ParameterError(`Cannot listen with transport ${transport}: expected web or rfb`);
  }
  const address = parseAddress(given);
  const password = text(given, 'password', 64);
  if (password !== undefined && transport === 'web') {
    throw new ParameterError('Cannot listen with a password for the web: its token is what lets viewers in');
  }
  if (password === '') throw new ParameterError('Cannot listen with an empty password');
  if (address.kind === 'tcp' && !isLoopback(address.host)) {
    if (flag(given, 'allowRemote') !== true) {
      throw new ParameterError(`Cannot listen on ${address.host}: not loopback, and allowRemote is not set`);
    }
    if (transport === 'rfb' && password === undefined) {
      throw new ParameterError(`Cannot listen on ${address.host}: security type None is for loopback, set a password`);
    }
  }
  const hosts = given.get('allowedHosts') ?? [];
  if (
    !Array.isArray(hosts) ||
    hosts.length > MAX_HOSTS ||
    !hosts.every((h) => typeof h === 'string' && h.length < 256)
  ) {
    throw new ParameterError(`Cannot listen: allowedHosts is not a list of up to ${MAX_HOSTS} names`);
  }
  const known = address.kind === 'tcp' && !isLoopback(address.host) ? [address.host] : [];
  return {
    transport,
    address,
    password,
    viewOnly: flag(given, 'viewOnly') ?? false,
    oneTime: flag(given, 'oneTime') ?? false,
    allowedHosts: [...known, ...(hosts as string[])],
  };
}

function parseAddress(given: Map<string, unknown>): BindAddress {
  const fd = integer(given, 'fd', 0, 1 << 20);
  if (fd !== undefined) return { kind: 'fd', fd };
  const path = text(given, 'path', MAX_SOCKET_PATH_BYTES);
  if (path !== undefined) {
    if (path === '') throw new ParameterError('Cannot listen on an empty path');
    return { kind: 'unix', path };
  }
  return {
    kind: 'tcp',
    host: text(given, 'host', 255) || '127.0.0.1',
    port: integer(given, 'port', 0, 65535) ?? 0,
  };
}

export function parseName(value: unknown): string {
  if (typeof value !== 'string' || Buffer.byteLength(value) > MAX_NAME_BYTES) {
    throw new ParameterError(`Cannot name the desktop: not a text of up to ${MAX_NAME_BYTES} bytes`);
  }
  return value;
}

export function text(given: Map<string, unknown>, field: string, maxLength: number): string | undefined {
  const value = given.get(field);
  if (value === undefined || value === null) return undefined;
  if (typeof value !== 'string' || value.length > maxLength || value.includes('\0')) {
    throw new ParameterError(`Cannot use ${field}: not a text of up to ${maxLength} characters`);
  }
  return value;
}

export function integer(given: Map<string, unknown>, field: string, min: number, max: number): number | undefined {
  const value = given.get(field);
  if (value === undefined || value === null) return undefined;
  if (typeof value !== 'number' || !Number.isInteger(value) || value < min || value > max) {
    throw new ParameterError(`Cannot use ${field}: not a whole number of ${min}..${max}`);
  }
  return value;
}

export function flag(given: Map<string, unknown>, field: string): boolean | undefined {
  const value = given.get(field);
  if (value === undefined || value === null) return undefined;
  if (typeof value !== 'boolean') throw new ParameterError(`Cannot use ${field}: not true or false`);
  return value;
}
