import type { ImageSource } from '../../../services/nbd/images/mod.ts';
import { parseImageWords } from '../../drives.ts';
import { toImageSource, withSecrets } from '../../encryption.ts';
import { isSecret, parseSecret, Secrets } from '../../secrets.ts';
import type { Given, OptionRule } from './grammar.ts';

/** Passphrases, and images by QEMU's words for them. */
export const IMAGE_OPTS_OPTIONS: readonly OptionRule[] = [
  {
    long: 'object',
    value: 'OBJECT',
    help: 'secret,id=ID,file=FILE[,format=base64]: a passphrase for key-secret=ID',
    repeats: true,
  },
  {
    long: 'image-opts',
    help: 'images are named as driver=FMT,file.filename=FILE,…, also with backing. and encrypt.key-secret=ID',
  },
];

export const OBJECT_OPTION = IMAGE_OPTS_OPTIONS[0]!;

/** What operands stand for, by the path that took their place */
const named = new WeakMap<Given, Map<string, ImageSource>>();
const secretsBy = new WeakMap<Given, Secrets>();

/** `--object secret,…` of one command line. @throws UsageError */
export function secretsOf(given: Given): Secrets {
  const before = secretsBy.get(given);
  if (before !== undefined) return before;
  const objects = given.all('object').map((text) => {
    if (!isSecret(text)) throw given.usage('--object: expected secret,id=ID,file=FILE');
    return parseSecret('--object', text);
  });
  const secrets = new Secrets('--object', objects, { read: true });
  secretsBy.set(given, secrets);
  return secrets;
}

/**
 * Where images are named by QEMU's words (`--image-opts`), puts their paths in the place of these, so that commands
 * see paths alone; imageOptsOf() then knows the rest. @throws UsageError, SecretError
 */
export function resolveImageOpts(command: string, given: Given): void {
  const sources = new Map<string, ImageSource>();
  named.set(given, sources);
  const { operands } = given;
  const take = (index: number, option: string, prefix = ''): void => {
    const source = parseSource(option, operands[index]!.slice(prefix.length), secretsOf(given));
    sources.set(source.path!, source);
    given.replaceOperand(index, `${prefix}${source.path}`);
  };
  if (given.has('target-image-opts')) take(operands.length - 1, '--target-image-opts');
  if (!given.has('image-opts')) return;
  const count =
    command === 'convert' ? operands.length - 1 : command === 'resize' ? Math.min(1, operands.length) : operands.length;
  for (let index = 0; index < count; index++) {
    if (command !== 'dd') take(index, '--image-opts');
    else if (operands[index]!.startsWith('if=')) take(index, '--image-opts', 'if=');
  }
}

/** What was said of the image at `path` by QEMU's words; undefined where it was named as a path. */
export function imageOptsOf(given: Given, path: string): ImageSource | undefined {
  return named.get(given)?.get(path);
}

function parseSource(option: string, text: string, secrets: Secrets): ImageSource {
  return toImageSource(withSecrets(parseImageWords(option, text), secrets));
}
