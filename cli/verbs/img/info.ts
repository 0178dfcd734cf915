import { type ImageSource, resolveChain } from '../../../services/nbd/images/mod.ts';
import { isNbdUri } from '../../block_devices.ts';
import type { Given, Subcommand } from './grammar.ts';
import { type ImageInfo, imageInfo } from './image_info.ts';
import { printable, printJson, printLines, sizeText } from './output.ts';
import { formatOf, openSource, SHARED_OPTIONS, SOURCE_OPTIONS, withAdvice } from './source.ts';

export const infoCommand: Subcommand = {
  name: 'info',
  summary: 'what an image says of itself',
  operands: 'FILE',
  options: [
    ...SOURCE_OPTIONS.filter(({ long }) => long !== 'backing' && long !== 'allow-extents'),
    { long: 'output', value: 'human|json', help: 'json has the keys of qemu-img info (default human)' },
    { long: 'backing-chain', help: 'all images under it, too; needs --backing-root' },
    ...SHARED_OPTIONS,
  ],
  text: `Prints what an image says of itself: sizes, format, snapshots, what it is on top of. No other file is opened, and
names that stand inside the image are only shown.`,
  examples: `  caisson img info -f qcow2 disk.qcow2
  caisson img info -f qcow2 --output=json disk.qcow2
  caisson img info -f qcow2 --backing-chain --backing-root=/var/lib/images top.qcow2`,
  async run(given) {
    const [path] = given.expect('FILE') as [string];
    const format = formatOf(given, 'f', path);
    const output = given.oneOf('output', ['human', 'json'], 'human');
    const infos = await infosOf(given, path, format);
    if (output === 'json') printJson(given.has('backing-chain') ? infos : infos[0]);
    else {
      for (const [index, info] of infos.entries()) {
        if (index > 0) printLines('');
        printLines(...humanInfo(info));
      }
    }
    return 0;
  },
};

async function infosOf(given: Given, path: string, format: ImageInfo['format']): Promise<ImageInfo[]> {
  if (isNbdUri(path)) return [await infoOfExport(given, path)];
  if (!given.has('backing-chain')) return [await withAdvice(path, () => imageInfo(path, format))];
  const root = given.text('backing-root');
  if (root === undefined && !given.asQemu) {
    throw given.usage(
      '--backing-chain follows names that stand inside images; say by --backing-root=DIR where they may lead',
    );
  }
  const infos: ImageInfo[] = [];
  let source: ImageSource | undefined = await withAdvice(path, () =>
    resolveChain(path, format, { root: root ?? '/', guess: given.asQemu }),
  );
  for (; source !== undefined; source = source.backing) {
    const at = source.path!;
    const known = source.format;
    infos.push(await withAdvice(at, () => imageInfo(at, known)));
  }
  return infos;
}

async function infoOfExport(given: Given, name: string): Promise<ImageInfo> {
  const { image } = await openSource(given, name, 'raw');
  await image.close();
  return { 'virtual-size': image.sizeBytes, filename: name, format: 'raw', 'dirty-flag': false };
}

function humanInfo(info: ImageInfo): string[] {
  const lines = [
    `image: ${info.filename}`,
    `file format: ${info.format}`,
    `virtual size: ${sizeText(info['virtual-size'])} (${info['virtual-size']} bytes)`,
    `disk size: ${info['actual-size'] === undefined ? 'unavailable' : sizeText(info['actual-size'])}`,
  ];
  if (info.encrypted) lines.push('encrypted: yes');
  if (info['cluster-size'] !== undefined) lines.push(`cluster_size: ${info['cluster-size']}`);
  if (info['dirty-flag']) lines.push('cleanly shut down: no');
  const backing = info['backing-filename'];
  if (backing !== undefined) {
    const full = info['full-backing-filename']!;
    lines.push(`backing file: ${printable(backing)}${full === backing ? '' : ` (actual path: ${printable(full)})`}`);
    const format = info['backing-filename-format'];
    if (format !== undefined) lines.push(`backing file format: ${printable(format)}`);
  }
  if (info.snapshots !== undefined) lines.push('Snapshot list:', ...snapshotLines(info.snapshots));
  const specific = info['format-specific'];
  if (specific !== undefined) lines.push('Format specific information:', ...nested(specific.data, 4));
  return lines;
}

/** As qemu-img's table. */
export function snapshotLines(snapshots: NonNullable<ImageInfo['snapshots']>): string[] {
  const rows = snapshots.map((snapshot) => {
    const seconds = Number(snapshot['vm-clock-sec']);
    const two = (value: number) => String(Math.floor(value)).padStart(2, '0');
    const clock = `${two(seconds / 3600)}:${two((seconds / 60) % 60)}:${two(seconds % 60)}`;
    const milliseconds = String(Math.floor(Number(snapshot['vm-clock-nsec']) / 1e6)).padStart(3, '0');
    const size = sizeText(Number(snapshot['vm-state-size'])).padStart(8);
    const id = printable(String(snapshot.id)).padEnd(9);
    const name = printable(String(snapshot.name)).padEnd(16);
    return `${id} ${name} ${size} ${localTime(Number(snapshot['date-sec']))} ${clock}.${milliseconds} ${String(snapshot.icount ?? '').padStart(10)}`;
  });
  return ['ID        TAG               VM SIZE                DATE     VM CLOCK     ICOUNT', ...rows];
}

function localTime(seconds: number): string {
  const date = new Date(seconds * 1000);
  const two = (value: number) => String(value).padStart(2, '0');
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  return `${day} ${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
}

/** A value as qemu-img prints it: names with spaces for dashes, lists by number. */
function nested(value: Readonly<Record<string, unknown>>, indent: number): string[] {
  const lines: string[] = [];
  const pad = ' '.repeat(indent);
  for (const [key, item] of Object.entries(value)) {
    const name = key.replaceAll('-', ' ');
    if (Array.isArray(item)) {
      lines.push(`${pad}${name}:`);
      for (const [index, entry] of item.entries()) {
        if (typeof entry === 'object') {
          lines.push(`${pad}    [${index}]:`, ...nested(entry as Record<string, unknown>, indent + 8));
        } else lines.push(`${pad}    [${index}]: ${printable(String(entry))}`);
      }
    } else if (typeof item === 'object' && item !== null) {
      lines.push(`${pad}${name}:`, ...nested(item as Record<string, unknown>, indent + 4));
    } else lines.push(`${pad}${name}: ${printable(String(item))}`);
  }
  return lines;
}
