import process from 'node:process';

/** JSON as qemu-img prints it: four spaces. JSON lets control characters from 7f on stand as they are; a terminal acts. */
export function printJson(value: unknown): void {
  const text = JSON.stringify(value, undefined, 4);
  process.stdout.write(`${text.replace(/[\x7f-\x9f]/g, (found) => `\\u00${found.charCodeAt(0).toString(16)}`)}\n`);
}

export function printLines(...lines: string[]): void {
  for (const line of lines) process.stdout.write(`${line}\n`);
}

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB'];

/** `10 MiB`, `1.5 GiB`: three digits that count, as qemu-img */
export function sizeText(bytes: number): string {
  let unit = 0;
  // 1000 of a unit are written in the next one.
  while (unit < UNITS.length - 1 && bytes / 1024 ** unit >= 1000) unit++;
  return `${Number((bytes / 1024 ** unit).toPrecision(3))} ${UNITS[unit]}`;
}

/** Names inside images go to a terminal: no control characters. */
export function printable(text: string): string {
  return text.replace(/\p{Cc}/gu, '?');
}
