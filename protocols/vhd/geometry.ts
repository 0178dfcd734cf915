import { VHD_LIMITS } from './limits.ts';

/** Of the disk as a BIOS sees it: "CHS Calculation" of the specification. */
export interface VhdGeometry {
  readonly cylinders: number;
  readonly heads: number;
  readonly sectorsPerTrack: number;
}

/** The largest geometry; it says nothing about the size */
export const MAX_GEOMETRY: VhdGeometry = { cylinders: 65_535, heads: 16, sectorsPerTrack: 255 };
const MAX_GEOMETRY_SECTORS = geometrySectors(MAX_GEOMETRY);

export function geometrySectors({ cylinders, heads, sectorsPerTrack }: VhdGeometry): number {
  return cylinders * heads * sectorsPerTrack;
}

/** The geometry of a disk of so many sectors; it has no more of them, but often fewer. */
export function geometryOf(sectors: number): VhdGeometry {
  const total = Math.min(sectors, MAX_GEOMETRY_SECTORS);
  if (total >= 65_535 * 16 * 63) return { cylinders: Math.floor(total / 255 / 16), heads: 16, sectorsPerTrack: 255 };
  let sectorsPerTrack = 17;
  let tracks = Math.floor(total / 17);
  let heads = Math.max(4, Math.ceil(tracks / 1024));
  if (tracks >= heads * 1024 || heads > 16) {
    sectorsPerTrack = 31;
    heads = 16;
    tracks = Math.floor(total / 31);
  }
  if (tracks >= heads * 1024) {
    sectorsPerTrack = 63;
    tracks = Math.floor(total / 63);
  }
  return { cylinders: Math.floor(tracks / heads), heads, sectorsPerTrack };
}

/**
 * The geometry of the least disk that holds so many sectors and is whole in cylinders: Virtual PC takes the size from
 * the geometry. The largest geometry where there is none.
 */
export function coveringGeometry(sectors: number): VhdGeometry {
  // Each step adds a sector; a cylinder has at most 16 x 255.
  for (let more = 0; more <= 16 * 255 * 2; more++) {
    const geometry = geometryOf(sectors + more);
    if (geometrySectors(geometry) >= sectors) return geometry;
  }
  return MAX_GEOMETRY;
}

/** Programs that take the size of the disk from "current size"; all others take it from the geometry. QEMU's list */
const SIZE_CREATORS = new Set(['win ', 'qem2', 'd2v ', 'CTXS', 'tap\0', 'wa\0\0']);

/** The size of the disk, in `bytes`: from the geometry or the size, by who made the file, as QEMU decides it. */
export function diskBytes(geometry: VhdGeometry, currentBytes: number, creator: string): number {
  const sectors = geometrySectors(geometry);
  if (SIZE_CREATORS.has(creator) || sectors >= MAX_GEOMETRY_SECTORS || sectors === 0) {
    return Math.min(Math.floor(currentBytes / 512) * 512, VHD_LIMITS.sizeBytes);
  }
  return sectors * 512;
}
