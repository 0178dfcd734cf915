import { TRANSMISSION_FLAG } from './constants.ts';

/** "Block size constraints", in `bytes`; powers of two */
export interface BlockSizes {
  readonly minimum: number;
  readonly preferred: number;
  readonly maximum: number;
}

/** What the protocol tells about one export. */
export interface ExportDescription {
  /** Canonical name; '' is the default export */
  readonly name: string;
  readonly description?: string;
  /** In `bytes`, below 2^63 */
  readonly sizeBytes: bigint;
  /** Bits of TRANSMISSION_FLAG; SEND_DF is added by the session when structured replies are on */
  readonly flags: number;
  readonly blockSizes: BlockSizes;
  /** Names of the meta contexts that may be selected, `namespace:leaf` */
  readonly contexts: readonly string[];
  /** Only for clients that came over TLS */
  readonly tlsRequired?: boolean;
}

export interface ExportSummary {
  readonly name: string;
  readonly description?: string;
}

/** One selected meta context; the server chose the id. */
export interface MetaContext {
  readonly id: number;
  readonly name: string;
}

export function isReadOnly(flags: number): boolean {
  return (flags & TRANSMISSION_FLAG.READ_ONLY) !== 0;
}
