import { resolve } from 'node:path';
import { MAX_SHIFT } from '../protocols/replay/limits.ts';
import type { IcountOptions } from '../services/supervisor/mod.ts';
import { KeyValues } from './key_value.ts';
import { UsageError } from './usage_error.ts';

/** `-icount [shift=]N|auto[,sleep=on|off][,rr=record|replay,rrfile=FILE]`. @throws UsageError */
export function parseIcount(value: string): IcountOptions {
  const keys = new KeyValues('-icount', value, 'shift');
  const text = keys.require('shift');
  if (text !== 'auto' && !(/^[0-9]{1,2}$/.test(text) && Number(text) <= MAX_SHIFT)) {
    throw new UsageError(`Cannot use -icount with shift=${text}: expected 0..${MAX_SHIFT} or auto`);
  }
  const sleep = keys.flag('sleep', true);
  if (keys.flag('align', false)) {
    throw new UsageError('Cannot use -icount with align=on: guest time is not held back to real time, only off');
  }
  const mode = keys.take('rr');
  const file = keys.take('rrfile');
  keys.end();
  const shift = text === 'auto' ? text : Number(text);
  if (mode === undefined) {
    if (file !== undefined) throw new UsageError('Cannot use -icount with rrfile=: rr=record or rr=replay is missing');
    return { shift, sleep };
  }
  if (mode !== 'record' && mode !== 'replay') {
    throw new UsageError(`Cannot use -icount with rr=${mode}: expected record or replay`);
  }
  if (file === undefined || file === '') throw new UsageError(`Cannot use -icount with rr=${mode}: rrfile= is missing`);
  if (shift === 'auto') {
    throw new UsageError(`Cannot use -icount with rr=${mode} and shift=auto: such a run cannot be repeated`);
  }
  return { shift, sleep, rr: { mode, file: resolve(file) } };
}
