/** What a LUKS header may ask for at most: it costs whoever wants to open the disk memory and time. */
export const LUKS_LIMITS = {
  slots: 8,
  /** Of one PBKDF2; a 2 s calibration of today's machines gives some millions */
  iterations: 20_000_000,
  /** Of all that a wrong passphrase costs: each slot in use, and the digest for each of them; 8 slots of 2 s fit */
  totalIterations: 64_000_000,
  /** The only number in use: the specification's */
  stripes: 4000,
  /** Of header and key material, in `bytes` */
  headerBytes: 4 << 20,
} as const;
