export { QmpDecoder, type QmpFrame } from './decoder.ts';
export { introspect, type SchemaInfo } from './introspect.ts';
export { formatJson, type JsonObject, type JsonValue, parseJson } from './json.ts';
export {
  decodeRequest,
  decodeServerMessage,
  encodeError,
  encodeEvent,
  encodeGreeting,
  encodeReturn,
  type QmpRequest,
  QmpRequestError,
  type QmpServerMessage,
  type QmpVersion,
} from './message.ts';
export { QmpError, type QmpErrorClass } from './qmp_error.ts';
export { QMP_SCHEMA } from './schema.ts';
export type {
  QmpArguments,
  QmpCommandName,
  QmpEventData,
  QmpEventName,
  QmpReturn,
  QmpSchema,
} from './schema_types.ts';
export { isQmpCommand, isQmpEvent, projectReturn, type QmpCall, validateCommand } from './validate.ts';
