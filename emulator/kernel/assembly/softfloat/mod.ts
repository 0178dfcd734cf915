// Exact IEEE 754 arithmetic for the F and D extensions: every rounding mode, every flag, canonical NaNs.

export * from './f32';
export * from './f64';
