// biome-ignore-all format: one row per group reads best

// WebAssembly opcodes by their text-format names (core specification 2.0 §5.4, threads proposal for 0xfe).

export const I32 = {
  eqz: 0x45, eq: 0x46, ne: 0x47, lt_s: 0x48, lt_u: 0x49, gt_s: 0x4a, gt_u: 0x4b, le_s: 0x4c, le_u: 0x4d, ge_s: 0x4e, ge_u: 0x4f,
  clz: 0x67, ctz: 0x68, popcnt: 0x69, add: 0x6a, sub: 0x6b, mul: 0x6c, div_s: 0x6d, div_u: 0x6e, rem_s: 0x6f, rem_u: 0x70,
  and: 0x71, or: 0x72, xor: 0x73, shl: 0x74, shr_s: 0x75, shr_u: 0x76, rotl: 0x77, rotr: 0x78,
} as const;

export const I64 = {
  eqz: 0x50, eq: 0x51, ne: 0x52, lt_s: 0x53, lt_u: 0x54, gt_s: 0x55, gt_u: 0x56, le_s: 0x57, le_u: 0x58, ge_s: 0x59, ge_u: 0x5a,
  clz: 0x79, ctz: 0x7a, popcnt: 0x7b, add: 0x7c, sub: 0x7d, mul: 0x7e, div_s: 0x7f, div_u: 0x80, rem_s: 0x81, rem_u: 0x82,
  and: 0x83, or: 0x84, xor: 0x85, shl: 0x86, shr_s: 0x87, shr_u: 0x88, rotl: 0x89, rotr: 0x8a,
} as const;

export const F32 = { add: 0x92, sub: 0x93, mul: 0x94, div: 0x95, sqrt: 0x91 } as const;
export const F64 = { add: 0xa0, sub: 0xa1, mul: 0xa2, div: 0xa3, sqrt: 0x9f } as const;
/** Comparisons and what else exists for doubles alone here */
export const F64_MORE = {
  eq: 0x61, lt: 0x63, gt: 0x64, le: 0x65, ge: 0x66, abs: 0x99, neg: 0x9a, trunc: 0x9d, nearest: 0x9e, min: 0xa4, max: 0xa5, copysign: 0xa6,
} as const;

/** Loads that give an i64, by RISC-V width letter */
export const LOAD64 = { b: 0x30, bu: 0x31, h: 0x32, hu: 0x33, w: 0x34, wu: 0x35, d: 0x29 } as const;
/** Stores of an i64's low bytes */
export const STORE64 = { b: 0x3c, h: 0x3d, w: 0x3e, d: 0x37 } as const;

/** Atomic read-modify-write, second byte after 0xfe: [32-bit on i64 (zero-extending), 64-bit] */
export const ATOMIC_RMW = {
  add: [0x24, 0x1f],
  sub: [0x2b, 0x26],
  and: [0x32, 0x2d],
  or: [0x39, 0x34],
  xor: [0x40, 0x3b],
  xchg: [0x47, 0x42],
  cmpxchg: [0x4e, 0x49],
} as const;
export const ATOMIC_FENCE = 0x03;

/** Whole loads and stores of other types than i64 */
export const MEMORY = {
  i32_load: 0x28, f32_load: 0x2a, f64_load: 0x2b, i32_load8_u: 0x2d, i32_load16_u: 0x2f,
  i32_store: 0x36, f64_store: 0x39, i32_store8: 0x3a, i32_store16: 0x3b,
} as const;

export const CONVERT = {
  i32_wrap_i64: 0xa7, i64_extend_i32_s: 0xac, i64_extend_i32_u: 0xad, i64_extend32_s: 0xc4,
  f32_demote_f64: 0xb6, f64_promote_f32: 0xbb,
  f32_convert_i32_s: 0xb2, f32_convert_i32_u: 0xb3, f32_convert_i64_s: 0xb4, f32_convert_i64_u: 0xb5,
  f64_convert_i32_s: 0xb7, f64_convert_i32_u: 0xb8, f64_convert_i64_s: 0xb9, f64_convert_i64_u: 0xba,
  i64_trunc_f64_s: 0xb0, i64_trunc_f64_u: 0xb1,
  i32_reinterpret_f32: 0xbc, i64_reinterpret_f64: 0xbd, f32_reinterpret_i32: 0xbe, f64_reinterpret_i64: 0xbf,
} as const;
export const SELECT = 0x1b;

export const TYPE_I32 = 0x7f;
export const TYPE_I64 = 0x7e;
export const TYPE_F64 = 0x7c;
export const TYPE_VOID = 0x40;
