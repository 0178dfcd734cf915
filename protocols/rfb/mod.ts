export {
  type ClientMessage,
  clientMessageSize,
  clipRegion,
  decodeClientMessage,
  isValidLayout,
  type NegotiatedInput,
  type RequestedRegion,
  type Screen,
} from './client_message.ts';
export * from './constants.ts';
export type { Picture } from './encodings/picture.ts';
export { encodeRaw } from './encodings/raw.ts';
export { type SegmentDeflater, ZrleTileEncoder, zrlePayload } from './encodings/zrle.ts';
export {
  encodeRefusal,
  type HandshakeOptions,
  type HandshakeState,
  type HandshakeStep,
  ServerHandshake,
} from './handshake.ts';
export { type KeyPosition, keysymToKey } from './keysym.ts';
export * from './limits.ts';
export {
  BGR233,
  BGRX,
  decodePixelFormat,
  encodePixelFormat,
  PIXEL_FORMAT_BYTES,
  type PixelFormat,
  PixelPacker,
  samePixelFormat,
  validatePixelFormat,
} from './pixel_format.ts';
export { scancodeToEvdev } from './scancode.ts';
export * from './server_message.ts';
export { decodeVersion, type ProtocolVersion, SERVER_VERSION, VERSION_BYTES } from './version.ts';
