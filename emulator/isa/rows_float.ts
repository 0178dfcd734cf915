// F and D: unprivileged specification, "F" and "D".
import type { Emitter, I32, I64, Precision } from './emitter.ts';
import { f2r, f2x, f4, fr, fx, i, type Row, s } from './row.ts';

const SIGN32 = 0x8000_0000 | 0;
const SIGN64 = 1n << 63n;

/** Moves the sign only: no flags, no canonicalisation (but a single must be boxed) */
const signInject32 = (combine: (e: Emitter, sign1: () => I32, sign2: () => I32) => I32) => (e: Emitter) => {
  e.fpEnabled();
  const a = e.let32(e.single1());
  const b = e.let32(e.single2());
  const magnitude = e.let32(e.i32('and', a.get(), e.c32(0x7fff_ffff)));
  const sign = e.let32(e.i32('and', combine(e, a.get, b.get), e.c32(SIGN32)));
  e.setSingle(e.i32('or', magnitude.get(), sign.get()));
};
const signInject64 = (combine: (e: Emitter, sign1: () => I64, sign2: () => I64) => I64) => (e: Emitter) => {
  e.fpEnabled();
  const a = e.let64(e.fs1());
  const b = e.let64(e.fs2());
  const magnitude = e.let64(e.i64('and', a.get(), e.c64(SIGN64 - 1n)));
  const sign = e.let64(e.i64('and', combine(e, a.get, b.get), e.c64(SIGN64)));
  e.setFd(e.i64('or', magnitude.get(), sign.get()));
};

const EXTENSION = { s: 'F', d: 'D' } as const;

/** Rows that exist alike in both precisions; `fmt` is 0 for single, 1 for double */
function rowsOf(p: Precision): Row[] {
  const ext = EXTENSION[p];
  const fmt = p === 's' ? 0 : 1;
  return [
    fr(`fadd.${p}`, ext, 0x00 | fmt, 'fff', (e) => e.fpArithmetic('add', p)),
    fr(`fsub.${p}`, ext, 0x04 | fmt, 'fff', (e) => e.fpArithmetic('sub', p)),
    fr(`fmul.${p}`, ext, 0x08 | fmt, 'fff', (e) => e.fpArithmetic('mul', p)),
    fr(`fdiv.${p}`, ext, 0x0c | fmt, 'fff', (e) => e.fpArithmetic('div', p)),
    f2r(`fsqrt.${p}`, ext, 0x2c | fmt, 0, 'ff', (e) => e.fpSqrt(p)),
    f4(`fmadd.${p}`, ext, 0x43, fmt, (e) => e.fpFused(false, false, p)),
    f4(`fmsub.${p}`, ext, 0x47, fmt, (e) => e.fpFused(false, true, p)),
    f4(`fnmsub.${p}`, ext, 0x4b, fmt, (e) => e.fpFused(true, false, p)),
    f4(`fnmadd.${p}`, ext, 0x4f, fmt, (e) => e.fpFused(true, true, p)),
    fx(`fmin.${p}`, ext, 0x14 | fmt, 0, 'fff', (e) => e.fpMinMax('min', p)),
    fx(`fmax.${p}`, ext, 0x14 | fmt, 1, 'fff', (e) => e.fpMinMax('max', p)),
    fx(`fle.${p}`, ext, 0x50 | fmt, 0, 'xff', (e) => e.fpCompare('le', p)),
    fx(`flt.${p}`, ext, 0x50 | fmt, 1, 'xff', (e) => e.fpCompare('lt', p)),
    fx(`feq.${p}`, ext, 0x50 | fmt, 2, 'xff', (e) => e.fpCompare('eq', p)),
    f2x(`fclass.${p}`, ext, 0x70 | fmt, 0, 1, 'xf', (e) => e.fpClass(p)),
    f2r(`fcvt.w.${p}`, ext, 0x60 | fmt, 0, 'xf', (e) => e.fpToInteger(p, 'i32')),
    f2r(`fcvt.wu.${p}`, ext, 0x60 | fmt, 1, 'xf', (e) => e.fpToInteger(p, 'u32')),
    f2r(`fcvt.l.${p}`, ext, 0x60 | fmt, 2, 'xf', (e) => e.fpToInteger(p, 'i64')),
    f2r(`fcvt.lu.${p}`, ext, 0x60 | fmt, 3, 'xf', (e) => e.fpToInteger(p, 'u64')),
    f2r(`fcvt.${p}.w`, ext, 0x68 | fmt, 0, 'fx', (e) => e.integerToFp('i32', p)),
    f2r(`fcvt.${p}.wu`, ext, 0x68 | fmt, 1, 'fx', (e) => e.integerToFp('u32', p)),
    f2r(`fcvt.${p}.l`, ext, 0x68 | fmt, 2, 'fx', (e) => e.integerToFp('i64', p)),
    f2r(`fcvt.${p}.lu`, ext, 0x68 | fmt, 3, 'fx', (e) => e.integerToFp('u64', p)),
  ];
}

export const FLOAT_ROWS: readonly Row[] = [
  i(
    'flw',
    'F',
    0x07,
    2,
    (e) => {
      e.fpEnabled();
      e.setSingle(e.wrap(e.load('wu', e.i64('add', e.rs1(), e.imm()))));
    },
    { format: 'FLOAD' },
  ),
  i(
    'fld',
    'D',
    0x07,
    3,
    (e) => {
      e.fpEnabled();
      e.setFd(e.load('d', e.i64('add', e.rs1(), e.imm())));
    },
    { format: 'FLOAD', compressed: true },
  ),
  s('fsw', 'F', 0x27, 2, (e) => {
    e.fpEnabled();
    e.store('w', e.i64('add', e.rs1(), e.imm()), () => e.fs2());
  }),
  s(
    'fsd',
    'D',
    0x27,
    3,
    (e) => {
      e.fpEnabled();
      e.store('d', e.i64('add', e.rs1(), e.imm()), () => e.fs2());
    },
    { compressed: true },
  ),
  ...rowsOf('s'),
  ...rowsOf('d'),
  fx(
    'fsgnj.s',
    'F',
    0x10,
    0,
    'fff',
    signInject32((_e, _a, b) => b()),
  ),
  fx(
    'fsgnjn.s',
    'F',
    0x10,
    1,
    'fff',
    signInject32((e, _a, b) => e.i32('xor', b(), e.c32(-1))),
  ),
  fx(
    'fsgnjx.s',
    'F',
    0x10,
    2,
    'fff',
    signInject32((e, a, b) => e.i32('xor', a(), b())),
  ),
  fx(
    'fsgnj.d',
    'D',
    0x11,
    0,
    'fff',
    signInject64((_e, _a, b) => b()),
  ),
  fx(
    'fsgnjn.d',
    'D',
    0x11,
    1,
    'fff',
    signInject64((e, _a, b) => e.i64('xor', b(), e.c64(-1))),
  ),
  fx(
    'fsgnjx.d',
    'D',
    0x11,
    2,
    'fff',
    signInject64((e, a, b) => e.i64('xor', a(), b())),
  ),
  f2r('fcvt.s.d', 'D', 0x20, 1, 'ff', (e) => e.fpConvert('d', 's')),
  f2r('fcvt.d.s', 'D', 0x21, 0, 'ff', (e) => e.fpConvert('s', 'd')),
  f2x('fmv.x.w', 'F', 0x70, 0, 0, 'xf', (e) => {
    e.fpEnabled();
    e.setRd(e.signExtendFrom(32, e.fs1()));
  }),
  f2x('fmv.w.x', 'F', 0x78, 0, 0, 'fx', (e) => {
    e.fpEnabled();
    e.setSingle(e.rs1w());
  }),
  f2x('fmv.x.d', 'D', 0x71, 0, 0, 'xf', (e) => {
    e.fpEnabled();
    e.setRd(e.fs1());
  }),
  f2x('fmv.d.x', 'D', 0x79, 0, 0, 'fx', (e) => {
    e.fpEnabled();
    e.setFd(e.rs1());
  }),
];
