import { getSystemErrorMessage } from 'node:util';

/** What a failed call of the system says: `no such file or directory (ENOENT)`; of other errors their code */
export function systemReason(cause: unknown): string {
  const { code, errno } = cause as NodeJS.ErrnoException;
  return errno === undefined ? String(code) : `${getSystemErrorMessage(errno)} (${code})`;
}
