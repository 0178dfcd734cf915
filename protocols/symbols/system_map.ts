import { Cursor } from '../bytes/mod.ts';
import { MAX_LINE_BYTES, MAX_SYMBOLS } from './limits.ts';
import { type GuestSymbol, printableName } from './symbol.ts';

const LINE = /^([0-9a-f]{1,16}) ([A-Za-z?]) (\S+)(?:\t\[\w+\])?$/;
const NEWLINE = 0x0a;

/**
 * Code symbols of a `System.map`, of `/proc/kallsyms` or of `nm`: lines of address, kind and name.
 * @throws WireError where a line is another
 */
export function decodeSystemMap(file: Uint8Array): GuestSymbol[] {
  const cursor = new Cursor(file, 'System.map');
  const symbols: GuestSymbol[] = [];
  let number = 0;
  let at = 0;
  while (at < file.length) {
    const found = file.indexOf(NEWLINE, at);
    const end = found < 0 ? file.length : found;
    number++;
    if (end - at > MAX_LINE_BYTES) {
      throw cursor.error('ERR_WIRE_LIMIT', `Cannot read line ${number}: ${end - at} bytes, limit is ${MAX_LINE_BYTES}`);
    }
    const line = cursor.utf8(end - at, MAX_LINE_BYTES, `line ${number}`);
    if (found >= 0) cursor.skip(1, 'line end');
    at = end + 1;
    if (line === '') continue;
    const match = LINE.exec(line);
    if (match === null) {
      throw cursor.error('ERR_WIRE_VALUE', `Cannot read line ${number}: ${JSON.stringify(line.slice(0, 60))}`);
    }
    const [, address, kind, name] = match;
    // Text and weak symbols; data is in the same list
    if (!'tTwW'.includes(kind!)) continue;
    if (symbols.length >= MAX_SYMBOLS) throw cursor.error('ERR_WIRE_LIMIT', `Cannot read over ${MAX_SYMBOLS} symbols`);
    symbols.push({ name: printableName(name!), address: BigInt(`0x${address}`), sizeBytes: 0 });
  }
  return symbols;
}
