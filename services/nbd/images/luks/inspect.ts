import type { LuksHeader } from '../../../../protocols/luks/mod.ts';
import { FdImageFile } from '../qcow2/image_file.ts';
import { readLuksHeader } from './unlock.ts';

/** What a LUKS header says of itself, without its secret, and how long the file behind it is, in `bytes` */
export interface LuksDetails {
  readonly header: LuksHeader;
  readonly diskBytes: number;
}

/**
 * Reads the header at `start` of a file: 0 for a raw disk, for a qcow2 image where and how long its header says.
 * @throws WireError, ImageError, errno errors of open(2)
 */
export async function inspectLuks(path: string, area?: { offset: number; bytes: number }): Promise<LuksDetails> {
  const file = FdImageFile.open(path, true);
  try {
    const { offset, bytes } = area ?? { offset: 0, bytes: file.sizeBytes };
    const header = await readLuksHeader({
      lengthBytes: bytes,
      read: (at, into) => file.read(offset + at, into),
    });
    return { header, diskBytes: Math.floor(Math.max(0, bytes - header.payloadOffset) / 512) * 512 };
  } finally {
    await file.close();
  }
}
