import { guessFormat, type ImageSource } from '../../../services/nbd/images/mod.ts';
import { imageWordsOf } from '../../drives.ts';
import { toImageSource, withoutSecrets, withSecrets } from '../../encryption.ts';
import { KeyValues } from '../../key_value.ts';
import { isSecret, parseSecret, Secrets } from '../../secrets.ts';
import { UsageError } from '../../usage_error.ts';
import type { Given, OptionRule } from './grammar.ts';
import { isNbdWords, nameOfNbdWords } from './nbd_source.ts';

/** Passphrases, and images by QEMU's words for them. */
export const IMAGE_OPTS_OPTIONS: readonly OptionRule[] = [
  {
    long: 'object',
    value: 'OBJECT',
    help: 'secret,id=ID,file=FILE[,format=base64]: a passphrase for key-secret=ID; tls-creds-x509 for driver=nbd',
    repeats: true,
  },
  {
    long: 'image-opts',
    help: 'images are named as driver=FMT,file.filename=FILE,…, also with backing. and encrypt.key-secret=ID',
  },
];

export const OBJECT_OPTION = IMAGE_OPTS_OPTIONS[0]!;

interface Said {
  readonly source: ImageSource;
  /** It was also said what is under it, or that nothing is */
  readonly backing: boolean;
}

/** Operands that are images which are there; of other commands all are */
const OPERANDS: Readonly<Record<string, (count: number) => number>> = {
  create: () => 0,
  convert: (count) => count - 1,
  resize: (count) => Math.min(1, count),
  bitmap: (count) => Math.min(1, count),
};
/** Of QEMU's keys, those that tune what is done in another way here, or say what is so anyway */
const WITHOUT_EFFECT =
  /^(?:l2-cache-.*|refcount-cache-.*|cache-.*|cache\..*|lazy-refcounts|overlap-check.*|detect-zeroes|read-only|force-share|locking|aio|pass-discard-.*)$/;
/** Of a json: name, in `characters` */
const MAX_JSON = 65_536;
const MAX_DEPTH = 16;

/** What operands stand for, by the path that took their place */
const named = new WeakMap<Given, Map<string, Said>>();
const secretsBy = new WeakMap<Given, Secrets>();

/** `--object secret,…` of one command line. @throws UsageError */
export function secretsOf(given: Given): Secrets {
  const before = secretsBy.get(given);
  if (before !== undefined) return before;
  const objects = given.all('object').flatMap((text) => {
    if (isSecret(text)) return [parseSecret('--object', text)];
    if (/^(?:qom-type=)?tls-creds-(?:x509|psk),/.test(text)) return []; // for driver=nbd
    throw given.usage('--object: expected secret,id=ID,file=FILE, or tls-creds-x509,id=ID,dir=FOLDER,endpoint=client');
  });
  const secrets = new Secrets('--object', objects, { read: true });
  secretsBy.set(given, secrets);
  return secrets;
}

/**
 * Where images are named by QEMU's words (`--image-opts`, `json:{…}`), puts their paths in the place of these, so that
 * commands see paths alone; imageOptsOf() then knows the rest. They are the user's words: what stands inside images is
 * not read so. @throws UsageError, SecretError
 */
export function resolveImageOpts(command: string, given: Given): void {
  const images = new Map<string, Said>();
  named.set(given, images);
  const { operands } = given;
  if (given.asQemu && command !== 'create') {
    for (const [index, operand] of operands.entries()) {
      const [, prefix = '', name = ''] = /^(if=|of=)?(.*)$/s.exec(operand) ?? [];
      given.replaceOperand(index, `${prefix}${withoutProtocol(name)}`);
    }
  }
  const take = (index: number, option: string, prefix = ''): void => {
    const text = operands[index]!.slice(prefix.length);
    const words = wordsOf(option, text);
    const rule = option === '--target-image-opts' ? 'O' : command === 'compare' && index === 1 ? 'F' : 'f';
    if (words.has('driver') && given.has(rule)) {
      throw new UsageError(`Cannot use -${rule} with ${text}: it says its driver`);
    }
    if (isNbdWords(words)) {
      given.replaceOperand(index, `${prefix}${nameOfNbdWords(given, words)}`);
      return;
    }
    addDrivers(given, words, rule);
    const image = imageWordsOf(option, words);
    // What an image says of itself is told without its secret.
    const source = toImageSource(command === 'info' ? withoutSecrets(image) : withSecrets(image, secretsOf(given)));
    const backing = [...words.keys()].some((key) => key === 'backing' || key.startsWith('backing.'));
    images.set(source.path!, { source, backing });
    given.replaceOperand(index, `${prefix}${source.path}`);
  };
  if (given.has('target-image-opts')) take(operands.length - 1, '--target-image-opts');
  const count = OPERANDS[command]?.(operands.length) ?? operands.length;
  for (let index = 0; index < count; index++) {
    const operand = operands[index]!;
    const prefix = command === 'dd' ? 'if=' : '';
    if (!operand.startsWith(prefix)) continue;
    if (given.has('image-opts') || operand.startsWith(`${prefix}json:`)) take(index, '--image-opts', prefix);
  }
}

/** `file:PATH` is PATH; where that has a colon that would be a protocol's, with `./` before it, as QEMU shows it. */
export function withoutProtocol(name: string): string {
  if (!name.startsWith('file:')) return name;
  const path = name.slice('file:'.length);
  return /^[^/]*:/.test(path) ? `./${path}` : path;
}

/** What was said of the image at `path` by QEMU's words; undefined where it was named as a path. */
export function imageOptsOf(given: Given, path: string): ImageSource | undefined {
  return named.get(given)?.get(path)?.source;
}

/** Whether these words say what is under it, too. */
export function saysBacking(given: Given, path: string): boolean {
  return named.get(given)?.get(path)?.backing === true;
}

function wordsOf(option: string, text: string): Map<string, string> {
  const all = text.startsWith('json:') ? jsonWords(text) : new KeyValues(option, text, 'file.filename').takeAll();
  const words = new Map<string, string>();
  for (const [key, value] of all) {
    if (WITHOUT_EFFECT.test(key.replace(/^(?:(?:backing|file|data-file)\.)*/, ''))) continue;
    words.set(key, /(?:^|\.)filename$/.test(key) ? value.replace(/^file:/, '') : value);
  }
  return words;
}

/** The format of the first layer may stand in an option; as qemu-img, others are guessed. */
function addDrivers(given: Given, words: Map<string, string>, rule: string): void {
  const said = given.text(rule);
  if (said !== undefined && !words.has('driver')) words.set('driver', said);
  if (!given.asQemu) return;
  for (let prefix = ''; prefix.length < MAX_DEPTH * 'backing.'.length; prefix += 'backing.') {
    const path = words.get(`${prefix}file.filename`);
    if (path === undefined) return;
    if (!words.has(`${prefix}driver`)) words.set(`${prefix}driver`, guessFormat(path) ?? 'raw');
  }
}

/** `json:{"driver":"qcow2","file":{"filename":"a"}}`; QEMU takes single quotes, too. */
function jsonWords(operand: string): ReadonlyMap<string, string> {
  const bad = (): UsageError => new UsageError(`Cannot read ${operand}: expected json: and an object`);
  if (operand.length > MAX_JSON) throw bad();
  const text = operand.slice('json:'.length);
  let value: unknown;
  try {
    value = JSON.parse(text.includes('"') ? text : text.replaceAll("'", '"'));
  } catch {
    throw bad();
  }
  const words = new Map<string, string>();
  const flatten = (object: unknown, prefix: string, depth: number): void => {
    if (typeof object !== 'object' || object === null || Array.isArray(object) || depth > MAX_DEPTH) throw bad();
    for (const [key, item] of Object.entries(object)) {
      if (typeof item === 'object' && item !== null) flatten(item, `${prefix}${key}.`, depth + 1);
      else words.set(`${prefix}${key}`, typeof item === 'boolean' ? (item ? 'on' : 'off') : String(item));
    }
  };
  flatten(value, '', 1);
  return words;
}
