/** The command line is wrong: exit status 2. */
export class UsageError extends Error {
  override readonly name = 'UsageError';
}

/** A verb of the command: gives the exit status, 0 done, 1 it failed, 2 the command line is wrong. */
export interface Verb {
  readonly name: string;
  readonly summary: string;
  readonly help: string;
  /** Of its subcommands, by name: `caisson VERB NAME --help` */
  readonly helpPages?: readonly { readonly name: string; readonly help: string }[];
  run(args: string[]): Promise<number>;
}
