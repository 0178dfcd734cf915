import { hasFeature, INCOMPATIBLE } from '../../../../protocols/qcow2/mod.ts';
import { type DiskImage, ImageError } from '../disk_image.ts';
import type { Qcow2Metadata } from './metadata.ts';

export interface ServeConditions {
  readonly readOnly: boolean;
  readonly backing?: DiskImage | undefined;
  /** The caller gave the external data file */
  readonly dataFile: boolean;
}

/** Whether an image that was decoded can be served. @throws ImageError saying why not */
export function checkServable({ header, damage }: Qcow2Metadata, given: ServeConditions): void {
  const has = (bit: number): boolean => hasFeature(header, bit);
  if (header.encryption === 2) refuse('it is encrypted');
  if (header.encryption === 1) refuse('it is encrypted with the legacy method, which protects nothing');
  if (has(INCOMPATIBLE.externalDataFile) && !given.dataFile) {
    refuse('it keeps its data in an external file, and none was given');
  }
  if (!has(INCOMPATIBLE.externalDataFile) && given.dataFile) refuse('a data file was given, it has none');
  if (header.backingFile !== undefined && given.backing === undefined) {
    refuse(`it has a backing file, ${JSON.stringify(header.backingFile)}, and none was given`);
  }
  if (header.backingFile === undefined && given.backing !== undefined) refuse('a backing file was given, it has none');
  if (given.readOnly) return;
  if (has(INCOMPATIBLE.corrupt)) refuse('it is marked corrupt; open it read-only or repair it');
  if (damage !== undefined) refuse(`corrupt, ${damage}`);
}

function refuse(why: string): never {
  throw new ImageError('EINVAL', `Cannot open the qcow2 image: ${why}`);
}
