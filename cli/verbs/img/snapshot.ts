import {
  applySnapshot,
  createSnapshot,
  deleteSnapshot,
  openImage,
  Qcow2Image,
} from '../../../services/nbd/images/mod.ts';
import type { Subcommand } from './grammar.ts';
import { imageInfo } from './image_info.ts';
import { snapshotLines } from './info.ts';
import { printLines } from './output.ts';
import { inQemusWords } from './qemu_words.ts';
import { formatOf, SHARED_OPTIONS, SOURCE_OPTIONS, sourceOf, withAdvice } from './source.ts';

const ACTIONS = ['l', 'c', 'a', 'd'] as const;

export const snapshotCommand: Subcommand = {
  name: 'snapshot',
  summary: 'list, take, apply or delete snapshots inside a qcow2',
  operands: 'FILE',
  options: [
    ...SOURCE_OPTIONS,
    { short: 'l', help: 'list them (the default)' },
    { short: 'c', value: 'NAME', help: 'take one: the disk as it is now, under a name' },
    { short: 'a', value: 'ID|NAME', help: 'apply one: the disk becomes what it was; what was written since is gone' },
    { short: 'd', value: 'ID|NAME', help: 'delete one' },
    ...SHARED_OPTIONS,
  ],
  text: 'Snapshots that a qcow2 image keeps inside itself. The image must not be in use.',
  examples: `  caisson img snapshot -f qcow2 disk.qcow2
  caisson img snapshot -f qcow2 -c before-upgrade disk.qcow2
  caisson img snapshot -f qcow2 -a before-upgrade disk.qcow2`,
  async run(given) {
    const [path] = given.expect('FILE') as [string];
    const format = formatOf(given, 'f', path);
    const actions = ACTIONS.filter((action) => given.has(action));
    if (actions.length > 1) throw given.usage(`-${actions[0]} and -${actions[1]} exclude each other`);
    const action = actions[0] ?? 'l';
    if (format !== 'qcow2' && action !== 'l') {
      if (given.asQemu) throw inQemusPlace('-95 (Operation not supported)', action, given.text(action)!);
      throw given.usage(`images of format ${format} keep no snapshots; qcow2 does`);
    }
    if (action === 'l') {
      const { snapshots = [] } = await withAdvice(path, () => imageInfo(path, format));
      // As qemu-img: nothing at all where there are none.
      if (snapshots.length > 0) printLines('Snapshot list:', ...snapshotLines(snapshots));
      return 0;
    }
    const name = given.text(action)!;
    const source = await sourceOf(given, path, format);
    const image = await withAdvice(path, () => openImage(source, { readOnly: false }));
    try {
      if (!(image instanceof Qcow2Image)) throw new Error(`Cannot open ${path} as qcow2`);
      if (action === 'c') await createSnapshot(image, name);
      else if (action === 'a') await applySnapshot(image, name);
      else {
        await deleteSnapshot(image, name);
        await image.releaseSpace();
      }
    } catch (error) {
      throw given.asQemu ? inQemusPlace(error, action, name) : error;
    } finally {
      await image.close();
    }
    return 0;
  },
};

/** An error with what qemu-img says before it. */
function inQemusPlace(error: unknown, action: 'c' | 'a' | 'd', name: string): Error {
  const text = inQemusWords(error);
  const missing = action === 'a' ? 'Failed to load snapshot: No such file or directory' : 'snapshot not found';
  const why = text.startsWith('Cannot find snapshot') ? missing : text;
  return new Error(`Could not ${{ c: 'create', a: 'apply', d: 'delete' }[action]} snapshot '${name}': ${why}`);
}
