export { BytePool, COPY_SKEW_BYTES } from './byte_pool.ts';
export { type ByteSource, byteSource, partOf, readAll, readHead, readPart } from './byte_source.ts';
export { Cursor } from './cursor.ts';
export { Digest } from './digest.ts';
export { FrameDecoder, type FrameDecoderOptions, type FrameSize } from './frame_decoder.ts';
export { WireError, type WireErrorCode, type WireErrorDetail } from './wire_error.ts';
export { Writer } from './writer.ts';
