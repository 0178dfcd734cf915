export { Cursor } from './cursor.ts';
export { FrameDecoder, type FrameDecoderOptions, type FrameSize } from './frame_decoder.ts';
export { WireError, type WireErrorCode, type WireErrorDetail } from './wire_error.ts';
export { Writer } from './writer.ts';
