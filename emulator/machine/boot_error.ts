export type BootErrorCode =
  /** The firmware is no program that fits where firmware goes */
  | 'ERR_BOOT_FIRMWARE'
  /** The kernel file is damaged, lies, or is for another machine */
  | 'ERR_BOOT_KERNEL'
  /** The kernel is compressed and does not decompress within the limit */
  | 'ERR_BOOT_DECOMPRESS'
  /** A file cannot be read, or has become shorter than it was */
  | 'ERR_BOOT_READ'
  /** The device tree is damaged, lies, or does not describe this machine */
  | 'ERR_BOOT_DTB'
  /** Something is loaded where there is no RAM, or does not fit into it */
  | 'ERR_BOOT_SPACE'
  /** Two things are loaded to one place */
  | 'ERR_BOOT_OVERLAP'
  /** The combination of options cannot start */
  | 'ERR_BOOT_OPTIONS';

/** The machine cannot start with these files and options. The message is one sentence for the user. */
export class BootError extends Error {
  override readonly name = 'BootError';
  readonly code: BootErrorCode;

  constructor(code: BootErrorCode, text: string, options?: ErrorOptions) {
    super(text, options);
    this.code = code;
  }
}
