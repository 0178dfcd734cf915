export { decodeFolded, encodeFolded, type FoldedStack } from './folded.ts';
export { MAX_FOLDED_BYTES, MAX_FRAME_LENGTH, MAX_FRAMES, MAX_STACKS } from './limits.ts';
