import process from 'node:process';
import {
  BASE_ALLOCATION,
  formatNbdUri,
  NBD_PORT,
  QEMU_ALLOCATION_DEPTH,
  TRANSMISSION_FLAG,
} from '../../protocols/nbd/mod.ts';
import { NbdClient, type NbdListenAddress } from '../../services/nbd/mod.ts';
import { UsageError } from '../usage_error.ts';
import type { NbdArguments } from './arguments.ts';
import { clientTls } from './credentials.ts';

/** qemu-nbd's words for transmission flags, in the order of their bits */
const FLAG_WORDS = {
  readonly: TRANSMISSION_FLAG.READ_ONLY,
  flush: TRANSMISSION_FLAG.SEND_FLUSH,
  fua: TRANSMISSION_FLAG.SEND_FUA,
  rotational: TRANSMISSION_FLAG.ROTATIONAL,
  trim: TRANSMISSION_FLAG.SEND_TRIM,
  zeroes: TRANSMISSION_FLAG.SEND_WRITE_ZEROES,
  df: TRANSMISSION_FLAG.SEND_DF,
  multi: TRANSMISSION_FLAG.CAN_MULTI_CONN,
  resize: TRANSMISSION_FLAG.SEND_RESIZE,
  cache: TRANSMISSION_FLAG.SEND_CACHE,
  'fast-zero': TRANSMISSION_FLAG.SEND_FAST_ZERO,
  'block-status-payload': TRANSMISSION_FLAG.BLOCK_STATUS_PAYLOAD,
} as const;

/** What is asked for; names of bitmaps are the server's, and not known here */
const CONTEXTS = [BASE_ALLOCATION, QEMU_ALLOCATION_DEPTH];

/** `--list`: the exports of a server, with the lines of qemu-nbd. */
export async function list(address: Exclude<NbdListenAddress, { type: 'fd' }>, values: NbdArguments): Promise<number> {
  if (values.operands.length > 0) throw new UsageError(`Cannot list: ${values.operands[0]} is too much`);
  const host = address.type === 'inet' ? (address.host ?? '127.0.0.1') : 'localhost';
  const tls = clientTls(values, host);
  const options = tls === undefined ? {} : { tls };
  const uriOf = (exportName: string): string =>
    formatNbdUri(
      address.type === 'unix'
        ? { address, exportName }
        : { address: { type: 'inet', host, port: address.port ?? NBD_PORT }, exportName },
    );
  const exports = await NbdClient.list(uriOf(''), options);
  const lines = [`exports available: ${exports.length}`];
  for (const summary of exports) {
    lines.push(` export: '${printable(summary.name)}'`);
    if (summary.description !== undefined) lines.push(`  description: ${printable(summary.description)}`);
    try {
      const client = await NbdClient.connect(uriOf(summary.name), { ...options, contexts: CONTEXTS });
      lines.push(...details(client));
      await client.close();
    } catch (error) {
      lines.push(`  cannot be opened: ${printable(error instanceof Error ? error.message : String(error))}`);
    }
  }
  process.stdout.write(`${lines.join('\n')}\n`);
  return 0;
}

function details(client: NbdClient): string[] {
  const { flags, blockSizes, extended } = client.export;
  const words = Object.entries(FLAG_WORDS).filter(([, bit]) => (flags & bit) !== 0);
  const contexts = client.contexts.map((name) => `   ${printable(name)}`);
  return [
    `  size:  ${client.sizeBytes}`,
    `  flags: 0x${flags.toString(16)} (${words.map(([word]) => ` ${word}`).join('')} )`,
    `  min block: ${blockSizes.minimum}`,
    `  opt block: ${blockSizes.preferred}`,
    `  max block: ${blockSizes.maximum}`,
    `  transaction size: ${extended ? '64' : '32'}-bit`,
    `  available meta contexts: ${contexts.length}`,
    ...contexts,
  ];
}

/** A server's texts go to a terminal: no control characters. */
function printable(text: string): string {
  return text.slice(0, 200).replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, '?');
}
