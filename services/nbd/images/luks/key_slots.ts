import { randomBytes } from 'node:crypto';
import {
  encodeLuksSlot,
  encodeLuksSlotState,
  LUKS_HEADER_BYTES,
  LUKS_LIMITS,
  type LuksHeader,
  type LuksSlotField,
} from '../../../../protocols/luks/mod.ts';
import { ImageError } from '../disk_image.ts';
import { FdImageFile } from '../qcow2/image_file.ts';
import { type IterationOptions, iterationsOf, sealKey } from './seal.ts';
import { findLuksKey, type LuksArea, readLuksHeader, tryKeySlot } from './unlock.ts';

export interface AddKey extends IterationOptions {
  readonly kind: 'add';
  readonly newPassphrase: Uint8Array;
  /** 0 to 7 (default: the first that is free) */
  readonly slot?: number;
  /** Also over a slot in use: a power cut meanwhile costs that one (default false) */
  readonly force?: boolean;
}

export interface EraseKeys {
  readonly kind: 'erase';
  /** At least one of the two: this slot, all slots that this passphrase fits */
  readonly slot?: number;
  readonly oldPassphrase?: Uint8Array;
  /** Also the last one, after which nobody opens the disk any more (default false) */
  readonly force?: boolean;
}

/** An area as long as the header, that can be written */
interface KeyArea extends LuksArea {
  write(field: LuksSlotField): Promise<void>;
  sync(): Promise<void>;
}

/**
 * Adds a passphrase to a LUKS header, or erases some; the disk's own key stays, and so does all that is on it. `area`:
 * where the header lies in the file, if not at its start. `passphrase` has to fit a slot for both.
 *
 * @throws WireError and ImageError, nothing changed; errno errors of open(2)
 */
export async function changeLuksKeys(
  path: string,
  passphrase: Uint8Array,
  change: AddKey | EraseKeys,
  area?: { readonly offset: number; readonly bytes: number },
): Promise<void> {
  const file = FdImageFile.open(path, false);
  try {
    const lock = await file.lock();
    try {
      const { offset, bytes } = area ?? { offset: 0, bytes: file.sizeBytes };
      const keys: KeyArea = {
        lengthBytes: bytes,
        read: (at, into) => file.read(offset + at, into),
        write: (field) => file.write(offset + field.offset, field.bytes),
        sync: () => file.sync(),
      };
      const header = await readLuksHeader(keys);
      const key = await findLuksKey(keys, header, passphrase);
      if (change.kind === 'add') await addKey(keys, header, key, change);
      else await eraseKeys(keys, header, change);
    } finally {
      await lock.release();
    }
  } finally {
    await file.close();
  }
}

async function addKey(area: KeyArea, header: LuksHeader, key: Uint8Array, change: AddKey): Promise<void> {
  const { force = false, newPassphrase } = change;
  if (change.slot !== undefined) checkSlot(change.slot);
  const index = change.slot ?? header.slots.indexOf(undefined);
  if (index < 0) throw refuse('all key slots are in use');
  const taken = header.slots[index] !== undefined;
  if (taken && !force) throw refuse(`key slot ${index} is in use, erase it first`);
  checkPlace(area, header, index);
  const iterations = await iterationsOf(change, header.hash, header.keyBytes);
  const others = header.slots.flatMap((slot, at) => (slot === undefined || at === index ? [] : [slot.iterations]));
  const total = [...others, iterations].reduce((sum, each) => sum + each + header.digestIterations, 0);
  // What we add we have to open again.
  if (total > LUKS_LIMITS.totalIterations) {
    throw refuse(`${total} iterations of all key slots together, limit is ${LUKS_LIMITS.totalIterations}`);
  }
  const { slot, material } = await sealKey(key, newPassphrase, iterations, header.hash);
  const place = header.materialOffsets[index]!;
  if (taken) await writeThrough(area, encodeLuksSlotState(index, false));
  await writeThrough(area, { offset: place, bytes: material }, encodeLuksSlot(index, slot, place));
  await writeThrough(area, encodeLuksSlotState(index, true));
}

async function eraseKeys(area: KeyArea, header: LuksHeader, change: EraseKeys): Promise<void> {
  const { slot, oldPassphrase, force = false } = change;
  const active = [...header.slots.keys()].filter((index) => header.slots[index] !== undefined);
  let erased: number[];
  if (slot === undefined) {
    if (oldPassphrase === undefined) throw refuse('neither a key slot nor a passphrase to erase was given');
    erased = [];
    for (const index of active) {
      if ((await tryKeySlot(area, header, index, oldPassphrase)) !== undefined) erased.push(index);
    }
    if (erased.length === 0) throw refuse('no key slot has the passphrase that is to be erased');
    if (erased.length === active.length && !force) {
      throw refuse('all key slots in use have this passphrase: without them, nobody opens the disk any more');
    }
  } else {
    checkSlot(slot);
    if (!active.includes(slot)) {
      if (force) return;
      throw refuse(`key slot ${slot} is not in use`);
    }
    if (oldPassphrase !== undefined && (await tryKeySlot(area, header, slot, oldPassphrase)) === undefined) {
      throw refuse(`key slot ${slot} has another passphrase`);
    }
    if (active.length === 1 && !force) {
      throw refuse(`key slot ${slot} is the only one in use: without it, nobody opens the disk any more`);
    }
    erased = [slot];
  }
  const materialBytes = header.keyBytes * LUKS_LIMITS.stripes;
  for (const index of erased) {
    const place = header.materialOffsets[index]!;
    await writeThrough(area, encodeLuksSlotState(index, false));
    // Material and salt, so that the passphrase is of no use any more even to who ignores the state.
    const nothing = { iterations: 0, salt: new Uint8Array(32) };
    await writeThrough(
      area,
      { offset: place, bytes: randomBytes(materialBytes) },
      encodeLuksSlot(index, nothing, place),
    );
  }
}

async function writeThrough(area: KeyArea, ...fields: readonly LuksSlotField[]): Promise<void> {
  for (const field of fields) await area.write(field);
  await area.sync();
}

function checkSlot(slot: number): void {
  if (!Number.isInteger(slot) || slot < 0 || slot >= LUKS_LIMITS.slots) {
    throw refuse(`key slot ${slot}, expected one from 0 to ${LUKS_LIMITS.slots - 1}`);
  }
}

/** What a header says of a slot that is not in use is not checked before. @throws ImageError */
function checkPlace(area: KeyArea, header: LuksHeader, index: number): void {
  const materialBytes = header.keyBytes * LUKS_LIMITS.stripes;
  const place = header.materialOffsets[index]!;
  const end = Math.min(area.lengthBytes, header.payloadOffset === 0 ? area.lengthBytes : header.payloadOffset);
  const overlaps = header.materialOffsets.some(
    (other, at) => at !== index && header.slots[at] !== undefined && Math.abs(other - place) < materialBytes,
  );
  if (place < LUKS_HEADER_BYTES || place + materialBytes > end || overlaps) {
    throw refuse(`key slot ${index} has its place at ${place}, over another part of the disk`);
  }
}

function refuse(why: string): ImageError {
  return new ImageError('EINVAL', `Cannot change the key slots: ${why}`);
}
