export type MigrationErrorCode =
  /** An address that we do not speak, or may not use */
  | 'ERR_MIGRATION_URI'
  | 'ERR_MIGRATION_PARAMETER'
  /** One migration at a time */
  | 'ERR_MIGRATION_BUSY'
  /** The peer is gone, or was never there */
  | 'ERR_MIGRATION_CONNECTION'
  /** The destination is another machine; the message gives its reasons */
  | 'ERR_MIGRATION_REFUSED'
  /** The peer ended it */
  | 'ERR_MIGRATION_ABORTED'
  | 'ERR_MIGRATION_CANCELLED'
  | 'ERR_MIGRATION_TIMEOUT'
  /** The guest stores faster than the link carries, within what the parameters allow */
  | 'ERR_MIGRATION_CONVERGENCE'
  /** What arrived is not what was sent */
  | 'ERR_MIGRATION_DIGEST'
  /** The guest was given away and no answer came: it stays paused here, and may run there */
  | 'ERR_MIGRATION_UNKNOWN_OUTCOME'
  /** The machine role does not do its part */
  | 'ERR_MIGRATION_MACHINE'
  | 'ERR_MIGRATION_STATE';

/** Why a migration did not come to its end. */
export class MigrationError extends Error {
  override readonly name = 'MigrationError';
  readonly code: MigrationErrorCode;

  constructor(code: MigrationErrorCode, text: string, options?: ErrorOptions) {
    super(text, options);
    this.code = code;
  }
}
