/** Why the Debian guest cannot be had here. The text is for the user's terminal. */
export type DebianErrorCode =
  | 'ERR_DEBIAN_NO_APT'
  | 'ERR_DEBIAN_NO_SOURCES'
  | 'ERR_DEBIAN_OFFLINE'
  | 'ERR_DEBIAN_SPACE'
  | 'ERR_DEBIAN_PACKAGE'
  | 'ERR_DEBIAN_TOOL';

export class DebianError extends Error {
  override readonly name = 'DebianError';
  readonly code: DebianErrorCode;
  constructor(code: DebianErrorCode, text: string, options?: ErrorOptions) {
    super(text, options);
    this.code = code;
  }
}
