/** A whole profile, in `bytes` */
export const MAX_FOLDED_BYTES = 24 << 20;
export const MAX_STACKS = 200_000;
export const MAX_FRAMES = 256;
/** Of one frame's name, in UTF-16 units */
export const MAX_FRAME_LENGTH = 4096;
