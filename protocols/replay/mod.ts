export { ReplayDecoder } from './decoder.ts';
export { decodeReplayHeader, encodeReplayHeader, type ReplayHeader, SEED_BYTES } from './header.ts';
export { MAX_SHIFT, MAX_TEXT_BYTES } from './limits.ts';
export { decodeReplayRecord, encodeReplayRecord, type ReplayRecord } from './record.ts';
