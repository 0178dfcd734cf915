/** What a device's state may be made of: plain data that msgpackr carries without classes or extensions. */
export type StateValue =
  | null
  | boolean
  | number
  | bigint
  | string
  | Uint8Array
  | readonly StateValue[]
  | { readonly [key: string]: StateValue };

/** A state that cannot be loaded: from another machine, damaged, or made by an attacker. Nothing was changed. */
export class StateError extends Error {
  override readonly name = 'StateError';
  readonly code = 'ERR_STATE';
  /** Where in the state, as `device.field.index` */
  readonly path: string;

  constructor(path: string, text: string) {
    super(`Cannot load state of ${path}: ${text}`);
    this.path = path;
  }
}

/** One text for one state: keys in order, numbers and bigints alike, bytes in hexadecimal. */
export function canonicalText(value: StateValue): string {
  if (typeof value === 'number' || typeof value === 'bigint') return value.toString();
  if (value instanceof Uint8Array) return `<${[...value].map((byte) => byte.toString(16).padStart(2, '0')).join('')}>`;
  if (Array.isArray(value)) return `[${value.map(canonicalText).join(',')}]`;
  if (typeof value === 'object' && value !== null) {
    const entries = Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1));
    return `{${entries.map(([key, field]) => `${key}:${canonicalText(field as StateValue)}`).join(',')}}`;
  }
  return JSON.stringify(value);
}

/**
 * The save and restore contract of every device. Loading has two phases so that a refused state leaves the
 * machine as it was: all devices prepare (decode and validate, changing nothing), then all commit.
 */
export interface Stateful {
  /** Unique in the machine, stable for ever: `uart0`, `virtio-blk0` */
  readonly stateName: string;
  /** Raised when the shape changes; older versions are read for as long as we can */
  readonly stateVersion: number;
  /** Complete and self-contained; called only while all harts are paused */
  saveState(): StateValue;
  /**
   * Checks an untrusted value and gives the closure that applies it.
   * @throws StateError naming the field that is wrong
   */
  prepareState(value: unknown, version: number): () => void;
}
