import { basename, dirname, isAbsolute, join } from 'node:path';
import process from 'node:process';
import { createAsQemu } from './create_as_qemu.ts';
import { parseSize, type Subcommand } from './grammar.ts';
import { imageInfo } from './image_info.ts';
import { OBJECT_OPTION, secretsOf } from './image_opts.ts';
import { printLines } from './output.ts';
import { knownFormat, SHARED_OPTIONS, withAdvice } from './source.ts';
import { planTarget, replaceFile, TARGET_FORMATS, targetHelp } from './target.ts';

export const createCommand: Subcommand = {
  name: 'create',
  summary: 'make an empty image',
  operands: 'FILE [SIZE]',
  options: [
    { short: 'f', value: 'FMT', help: `format of the new image, ${TARGET_FORMATS.join(', ')} (default raw)` },
    { short: 'o', value: 'OPTIONS', help: 'key=value,…; -o help shows those of the format', repeats: true },
    { short: 'b', value: 'FILE', help: 'what is under it: a path from the folder of the new image' },
    { short: 'F', value: 'FMT', help: 'format of that; has to be given with -b' },
    OBJECT_OPTION,
    { short: 'u', help: 'do not look at the file under it; SIZE has to be given then' },
    ...SHARED_OPTIONS,
  ],
  text: `Makes an empty image. SIZE is in bytes, or with k, M, G or T; with -b it is the size of what is under it. A file that is
there is replaced, once the new one is finished.`,
  examples: `  caisson img create -f qcow2 disk.qcow2 20G
  caisson img create -f qcow2 -b base.qcow2 -F qcow2 top.qcow2
  caisson img create -f qcow2 --object secret,id=s,file=passphrase -o encrypt.format=luks,encrypt.key-secret=s disk.qcow2 20G
  caisson img create -f vpc -o subformat=fixed,force_size=on azure.vhd 30G`,
  async run(given) {
    if (given.asQemu) return createAsQemu(given);
    const format = knownFormat(given, given.text('f') ?? 'raw');
    const options = given.all('o').join(',');
    if (options === 'help' || options === '?') {
      process.stdout.write(targetHelp(format));
      return 0;
    }
    const [path, sizeText, ...more] = given.operands;
    if (path === undefined) throw given.usage('its FILE is missing');
    if (more.length > 0) throw given.usage(`${more[0]} is too much`);
    const file = given.text('b');
    const under = given.text('F');
    if (file !== undefined && under === undefined) {
      throw given.usage(`the format of ${file} is not given, and never guessed; add -F qcow2, or whatever it is`);
    }
    if (file === undefined && under !== undefined) throw given.usage('-F is for -b');
    const backing = file === undefined ? undefined : { file, format: knownFormat(given, under!) };
    let sizeBytes = sizeText === undefined ? undefined : parseSize(sizeText, 'SIZE');
    if (backing !== undefined && !given.has('u')) {
      const at = isAbsolute(backing.file) ? backing.file : join(dirname(path), backing.file);
      const info = await withAdvice(at, () => imageInfo(at, backing.format));
      sizeBytes ??= info['virtual-size'];
    }
    const sizeInOptions = /(?:^|,)size=/.test(options);
    if (sizeBytes === undefined && !sizeInOptions) throw given.usage('its SIZE is missing');
    const target = planTarget({
      format,
      sizeBytes: sizeBytes ?? 0,
      options,
      name: basename(path),
      secrets: secretsOf(given),
      ...(backing === undefined ? {} : { backing }),
    });
    if (target.compressed) throw given.usage('a streamOptimized image is written once; make one by convert');
    await replaceFile(path, target.create);
    if (!given.has('q')) printLines(`Formatting '${path}', ${target.description}`);
    return 0;
  },
};
