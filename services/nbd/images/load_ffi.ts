import process from 'node:process';

/**
 * `node:ffi`, an experiment of Node's: undefined where this Node does not have it, or its permissions forbid it. `quiet`:
 * without Node's warning, where the person at the terminal can neither decide nor change anything.
 */
export function loadFfi(quiet: boolean): ReturnType<typeof process.getBuiltinModule<'node:ffi'>> {
  const { emitWarning } = process;
  // Node asks for this function when it warns, which it does once, while the module is loaded.
  if (quiet) process.emitWarning = () => {};
  try {
    return process.getBuiltinModule('node:ffi');
  } finally {
    process.emitWarning = emitWarning;
  }
}
