import { ImageError } from '../disk_image.ts';

/** The image contradicts itself. */
export class CorruptImageError extends ImageError {
  constructor(found: string) {
    super('EIO', `Cannot use the qcow2 image: corrupt, ${found}`);
  }
}
