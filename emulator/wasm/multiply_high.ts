import type { FunctionBody } from './module_builder.ts';
import { I64 as OP64, TYPE_I64 } from './opcodes.ts';

/**
 * Body of a function (i64, i64) → i64: the high half of a product by four 32-bit multiplications; the signed ones
 * correct the unsigned result, which the function at `unsignedIndex` gives.
 */
export function emitMultiplyHigh(f: FunctionBody, kind: 'ss' | 'uu' | 'su', unsignedIndex: number): void {
  const [a, b] = [0, 1];
  if (kind !== 'uu') {
    f.get(a).get(b).call(unsignedIndex);
    f.get(a).i64(63).op(OP64.shr_s).get(b).op(OP64.and).op(OP64.sub);
    if (kind === 'ss') f.get(b).i64(63).op(OP64.shr_s).get(a).op(OP64.and).op(OP64.sub);
    return;
  }
  const low = f.local(TYPE_I64);
  const middle = f.local(TYPE_I64);
  const mask = 0xffff_ffff;
  const half = (x: number, high: boolean): FunctionBody =>
    high ? f.get(x).i64(32).op(OP64.shr_u) : f.get(x).i64(mask).op(OP64.and);
  // low = a.low × b.low; middle = a.high × b.low + (low >> 32)
  half(a, false);
  half(b, false).op(OP64.mul).i64(32).op(OP64.shr_u).set(low);
  half(a, true);
  half(b, false).op(OP64.mul).get(low).op(OP64.add).set(middle);
  // low = a.low × b.high + middle.low
  half(a, false);
  half(b, true).op(OP64.mul);
  half(middle, false).op(OP64.add).set(low);
  // a.high × b.high + middle.high + (low >> 32)
  half(a, true);
  half(b, true).op(OP64.mul);
  half(middle, true).op(OP64.add).get(low).i64(32).op(OP64.shr_u).op(OP64.add);
}
