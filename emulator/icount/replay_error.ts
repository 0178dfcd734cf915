/** The run is not the recorded one any more. */
export class ReplayError extends Error {
  override readonly name = 'ReplayError';
  readonly code = 'ERR_REPLAY';
}
