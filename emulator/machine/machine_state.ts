import { StateError, type Stateful, type StateValue } from '../state/state.ts';
import type { MachineApi, MachineState } from './machine_api.ts';

/** Raised when a machine of this kind can no longer be what it was: other memory map, other device names */
const MACHINE_KIND = 'caisson-virt-1';

/**
 * All of a machine that has state, saved and loaded as one. Loading is in two phases: everything is decoded and
 * checked, by each part for itself, before anything is changed.
 */
export class MachineStateSet {
  readonly #parts: readonly Stateful[];
  readonly #ramBytes: number;
  readonly #harts: number;

  /** `parts` are loaded in this order; their names are unique. */
  constructor(parts: readonly Stateful[], ramBytes: number, harts: number) {
    this.#parts = parts;
    this.#ramBytes = ramBytes;
    this.#harts = harts;
  }

  /** What a state belongs to: the same text for machines that can take each other's state */
  get #config(): StateValue {
    return {
      machine: MACHINE_KIND,
      ramBytes: this.#ramBytes,
      harts: this.#harts,
      devices: this.#parts.map((part) => part.stateName),
    };
  }

  describe(): ReturnType<MachineApi['describeState']> {
    return {
      config: this.#config,
      devices: this.#parts.map((part) => ({ name: part.stateName, version: part.stateVersion })),
    };
  }

  save(): MachineState {
    return {
      config: this.#config,
      devices: this.#parts.map((part) => ({
        name: part.stateName,
        version: part.stateVersion,
        state: part.saveState(),
      })),
    };
  }

  /** @throws StateError naming what is wrong; nothing was changed then. The closure applies the state. */
  prepare(state: MachineState): () => void {
    const expected = textOf(this.#config);
    const found = textOf(state.config);
    if (found !== expected) {
      throw new StateError('machine', `it is of another machine: found ${found}, this is ${expected}`);
    }
    const saved = new Map<string, { version: number; state: StateValue }>();
    for (const { name, version, state: value } of state.devices) {
      if (saved.has(name)) throw new StateError(name, 'twice');
      saved.set(name, { version, state: value });
    }
    const commits = this.#parts.map((part) => {
      const own = saved.get(part.stateName);
      if (own === undefined) throw new StateError(part.stateName, 'missing');
      saved.delete(part.stateName);
      return part.prepareState(own.state, own.version);
    });
    const [unknown] = saved.keys();
    if (unknown !== undefined) throw new StateError(unknown, 'this machine has no such device');
    return () => {
      for (const commit of commits) commit();
    };
  }
}

/** One text for equal configurations; a foreign one may hold anything that a state can. */
function textOf(config: StateValue): string {
  return JSON.stringify(config, (_key, value: unknown) => (typeof value === 'bigint' ? `${value}n` : value)) ?? '';
}
