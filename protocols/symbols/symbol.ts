/** A name for an address of the guest. */
export interface GuestSymbol {
  readonly name: string;
  /** Unsigned 64 bits, virtual */
  readonly address: bigint;
  /** In `bytes`; 0 where the format does not tell: up to the next symbol then */
  readonly sizeBytes: number;
}

/** Names go to logs, and logs to terminals: no control characters. */
export function printableName(name: string): string {
  return name.replace(/\p{Cc}/gu, '?');
}
