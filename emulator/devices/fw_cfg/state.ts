import { StateReader } from '../../state/read_state.ts';
import { StateError, type StateValue } from '../../state/state.ts';

/** Where the guest is in its reading; the items themselves belong to the machine's configuration. */
export interface FwCfgState {
  /** Selected item */
  key: number;
  /** Into the item, in `bytes`; may be beyond its end */
  position: number;
  /** High half of a DMA address, waiting for the low half */
  dmaHigh: number;
}

export const FW_CFG_RESET: Readonly<FwCfgState> = Object.freeze({ key: 0, position: 0, dmaHigh: 0 });

export function encodeFwCfgState(state: FwCfgState): StateValue {
  return { key: state.key, position: state.position, dmaHigh: state.dmaHigh };
}

/** @throws StateError */
export function decodeFwCfgState(name: string, value: unknown, version: number): FwCfgState {
  if (version !== 1) throw new StateError(name, `version ${version}, expected 1`);
  const reader = new StateReader(name, value);
  return {
    key: reader.integer('key', 0, 0xffff),
    position: reader.u32('position'),
    dmaHigh: reader.u32('dmaHigh'),
  };
}
