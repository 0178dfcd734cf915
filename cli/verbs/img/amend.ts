import { amendQcow2, openImage, Qcow2Image } from '../../../services/nbd/images/mod.ts';
import { KeyValues } from '../../key_value.ts';
import type { Subcommand } from './grammar.ts';
import { formatOf, SHARED_OPTIONS, SOURCE_OPTIONS, sourceOf, withAdvice } from './source.ts';

export const amendCommand: Subcommand = {
  name: 'amend',
  summary: 'change options of a qcow2 that is there',
  operands: 'FILE',
  options: [
    ...SOURCE_OPTIONS.filter(({ long }) => long !== 'allow-extents'),
    { short: 'o', value: 'OPTIONS', help: 'compat=1.1 and lazy_refcounts=on|off; others: by convert', repeats: true },
    { short: 'p', help: 'accepted: it is done at once' },
    ...SHARED_OPTIONS,
  ],
  text: 'Changes options of a qcow2 without touching its contents.',
  examples: '  caisson img amend -f qcow2 -o compat=1.1,lazy_refcounts=on disk.qcow2',
  async run(given) {
    const [path] = given.expect('FILE') as [string];
    const format = formatOf(given, 'f', path);
    if (format !== 'qcow2') throw given.usage(`images of format ${format} have no options; qcow2 has`);
    const options = given.all('o').join(',');
    if (options === '') throw given.usage('its -o is missing: compat=1.1 or lazy_refcounts=on|off');
    const keys = new KeyValues('-o', options);
    const compat = keys.oneOf('compat', ['', '1.1', 'v3'], '');
    const lazy = keys.take('lazy_refcounts') === undefined ? undefined : keys.flag('lazy_refcounts', false);
    keys.end();
    const source = await sourceOf(given, path, format);
    const image = await withAdvice(path, () => openImage(source, { readOnly: false }));
    try {
      if (!(image instanceof Qcow2Image)) throw new Error(`Cannot open ${path} as qcow2`);
      await amendQcow2(image, {
        ...(compat === '' ? {} : { version: 3 }),
        ...(lazy === undefined ? {} : { lazyRefcounts: lazy }),
      });
    } finally {
      await image.close();
    }
    return 0;
  },
};
