import type { DiskImage } from '../disk_image.ts';
import type { ClusterMap } from './cluster_map.ts';
import type { ImageFile } from './image_file.ts';
import type { Qcow2Metadata } from './metadata.ts';

/** What an open image consists of; replaced as a whole when its tables are read anew. */
export interface Qcow2Context {
  /** Holds the tables */
  readonly file: ImageFile;
  /** Holds the guest's clusters: `file`, or the external data file, and what encrypts over it */
  readonly data: ImageFile;
  readonly metadata: Qcow2Metadata;
  readonly map: ClusterMap;
  /** What is under the image where the image itself has nothing */
  readonly backing: DiskImage | undefined;
  /** The data file is a raw image of the disk, and has to stay one */
  readonly rawData: boolean;
}
