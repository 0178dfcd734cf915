import { KeyValues } from '../../key_value.ts';
import { UsageError } from '../../usage_error.ts';
import type { Given, OptionRule, Subcommand } from './grammar.ts';

export const IMAGE_OPTIONS: OptionRule = {
  long: 'image-opts',
  help: 'FILE is driver=FORMAT,file.filename=PATH, with backing.driver= and so on for what is under it',
};

/** Commands whose last operand is not an image that is there, or none */
const OPERANDS: Readonly<Record<string, (count: number) => number>> = {
  create: () => 0,
  dd: () => 0,
  convert: (count) => count - 1,
  resize: (count) => Math.min(1, count),
  bitmap: (count) => Math.min(1, count),
};
/** Of QEMU's keys, those that tune what is done in another way here, or say what is so anyway */
const WITHOUT_EFFECT =
  /^(?:l2-cache-.*|refcount-cache-.*|cache-.*|cache\..*|lazy-refcounts|overlap-check.*|discard|detect-zeroes|read-only|auto-read-only|force-share|locking|aio|pass-discard-.*|node-name)$/;
/** Of a json: name, in `characters` */
const MAX_JSON = 65_536;
const MAX_DEPTH = 16;

/**
 * Operands of `--image-opts`, and `json:{…}`, as if they were given as a path, `-f` and `--backing`. They are the
 * user's words: what stands inside images is not read so.
 *
 * @throws UsageError
 */
export function withPlainNames(command: Subcommand, given: Given): Given {
  const all = given.has('image-opts');
  const count = OPERANDS[command.name]?.(given.operands.length) ?? given.operands.length;
  if (!given.operands.some((operand, index) => index < count && (all || operand.startsWith('json:')))) return given;
  const values = new Map(given.entries());
  const operands = given.operands.map((operand, index) => {
    if (index >= count || !(all || operand.startsWith('json:'))) return operand;
    const keys = operand.startsWith('json:') ? jsonKeys(operand) : keyValues(operand);
    const format = command.name === 'compare' && index === 1 ? 'F' : 'f';
    const layers = layersOf(keys, operand);
    const [top, ...under] = layers;
    if (top!.format !== undefined) {
      if (values.has(format)) throw new UsageError(`Cannot use -${format} with ${operand}: it says its driver`);
      values.set(format, [top!.format]);
    }
    if (under.length > 0)
      values.set(
        'backing',
        under.map((layer) => `${layer.format ?? 'raw'}:${layer.path}`),
      );
    return top!.path;
  });
  return given.with(values, operands);
}

interface Layer {
  readonly path: string;
  readonly format: string | undefined;
}

function layersOf(keys: ReadonlyMap<string, string>, shown: string): Layer[] {
  const left = new Map(keys);
  const take = (key: string): string | undefined => {
    const value = left.get(key);
    left.delete(key);
    return value;
  };
  const layers: Layer[] = [];
  for (let prefix = ''; layers.length < MAX_DEPTH; prefix += 'backing.') {
    const driver = take(`${prefix}driver`);
    const protocol = take(`${prefix}file.driver`) ?? 'file';
    const name = take(`${prefix}file.filename`) ?? take(`${prefix}filename`);
    if (name === undefined && layers.length > 0) break;
    if (name === undefined || protocol !== 'file') {
      throw new UsageError(`Cannot open ${shown}: expected file.filename=PATH, with file.driver=file or without`);
    }
    layers.push({ path: name.replace(/^file:/, ''), format: driver === 'file' ? 'raw' : driver });
  }
  for (const key of left.keys()) {
    if (!WITHOUT_EFFECT.test(key.replace(/^(?:backing\.|file\.)*/, ''))) {
      throw new UsageError(`Cannot open ${shown}: ${key}= is unknown`);
    }
  }
  return layers;
}

function keyValues(text: string): ReadonlyMap<string, string> {
  return new KeyValues('--image-opts', text, 'file.filename').takeAll();
}

/** `json:{"driver":"qcow2","file":{"filename":"a"}}`; QEMU takes single quotes, too. */
function jsonKeys(operand: string): ReadonlyMap<string, string> {
  const bad = (): UsageError => new UsageError(`Cannot read ${operand}: expected json: and an object`);
  if (operand.length > MAX_JSON) throw bad();
  const text = operand.slice('json:'.length);
  let value: unknown;
  try {
    value = JSON.parse(text.includes('"') ? text : text.replaceAll("'", '"'));
  } catch {
    throw bad();
  }
  const keys = new Map<string, string>();
  const flatten = (object: unknown, prefix: string, depth: number): void => {
    if (typeof object !== 'object' || object === null || Array.isArray(object) || depth > MAX_DEPTH) throw bad();
    for (const [key, item] of Object.entries(object)) {
      if (typeof item === 'object') flatten(item, `${prefix}${key}.`, depth + 1);
      else keys.set(`${prefix}${key}`, String(item));
    }
  };
  flatten(value, '', 1);
  return keys;
}
