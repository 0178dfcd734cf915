/** Error classes of the protocol (qmp-spec, "Error classes"); all but GenericError are kept for old clients. */
export type QmpErrorClass = 'GenericError' | 'CommandNotFound' | 'DeviceNotActive' | 'DeviceNotFound' | 'KVMMissingCap';

/** What a client did wrong, or what could not be done for it; becomes an `error` answer. */
export class QmpError extends Error {
  override readonly name = 'QmpError';
  readonly class: QmpErrorClass;
  constructor(text: string, errorClass: QmpErrorClass = 'GenericError') {
    super(text);
    this.class = errorClass;
  }
}
