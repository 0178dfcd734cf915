import { statSync } from 'node:fs';
import { AUTOCLEAR, COMPATIBLE, hasFeature, INCOMPATIBLE, type Qcow2Snapshot } from '../../../protocols/qcow2/mod.ts';
import {
  type ImageFormat,
  inspectLuks,
  inspectQcow2,
  inspectVhd,
  inspectVhdx,
  inspectVmdk,
  RawImage,
} from '../../../services/nbd/images/mod.ts';
import { luksInfo } from './luks_info.ts';

/** What `info` tells of one image, with the keys of qemu-img's JSON. */
export interface ImageInfo {
  readonly 'virtual-size': number;
  readonly filename: string;
  readonly 'cluster-size'?: number;
  readonly format: ImageFormat;
  /** Of the file; an export has none that anybody here could see */
  readonly 'actual-size'?: number;
  readonly encrypted?: true;
  readonly snapshots?: readonly Readonly<Record<string, unknown>>[];
  readonly 'backing-filename'?: string;
  readonly 'full-backing-filename'?: string;
  readonly 'backing-filename-format'?: string;
  readonly 'format-specific'?: { readonly type: string; readonly data: Readonly<Record<string, unknown>> };
  readonly 'dirty-flag': boolean;
}

/** Reads what the image at `path` says of itself. No other file is opened: names inside images are only shown. */
export async function imageInfo(path: string, format: ImageFormat): Promise<ImageInfo> {
  const details = await detailsOf(path, format);
  const {
    snapshots,
    'virtual-size': size,
    'cluster-size': cluster,
    encrypted,
    'format-specific': specific,
    ...backing
  } = details;
  // The keys in qemu-img's order: scripts have been seen to compare text.
  const all = {
    'backing-filename-format': backing['backing-filename-format'],
    snapshots,
    'virtual-size': size,
    filename: path,
    'cluster-size': cluster,
    format,
    'actual-size': statSync(path).blocks * 512,
    encrypted,
    'format-specific': specific,
    'full-backing-filename': backing['full-backing-filename'],
    'backing-filename': backing['backing-filename'],
    'dirty-flag': details['dirty-flag'] ?? false,
  };
  return Object.fromEntries(Object.entries(all).filter(([, value]) => value !== undefined)) as unknown as ImageInfo;
}

type Details = Omit<ImageInfo, 'filename' | 'format' | 'actual-size' | 'dirty-flag'> & { 'dirty-flag'?: boolean };

async function detailsOf(path: string, format: ImageFormat): Promise<Details> {
  switch (format) {
    case 'raw': {
      const image = await RawImage.open(path, { readOnly: true });
      await image.close();
      // As qemu-img: whole sectors, whatever the file's length.
      return { 'virtual-size': Math.ceil(image.sizeBytes / 512) * 512 };
    }
    case 'qcow2':
      return qcow2Details(path);
    case 'vpc': {
      const { sizeBytes, blockBytes } = await inspectVhd(path);
      return { 'virtual-size': sizeBytes, ...(blockBytes === undefined ? {} : { 'cluster-size': blockBytes }) };
    }
    case 'vhdx': {
      const { metadata } = await inspectVhdx(path);
      return { 'virtual-size': metadata.sizeBytes, 'cluster-size': metadata.blockBytes };
    }
    case 'vmdk':
      return vmdkDetails(path);
    case 'luks': {
      const { header, diskBytes } = await inspectLuks(path);
      const specific = { type: 'luks', data: luksInfo(header) };
      return { 'virtual-size': diskBytes, encrypted: true, 'format-specific': specific };
    }
  }
}

async function qcow2Details(path: string): Promise<Details> {
  const { header, snapshots, bitmaps } = await inspectQcow2(path);
  const v3 = header.version === 3;
  const has = (bit: number) => hasFeature(header, bit);
  const lazy = (header.compatibleFeatures & (1n << BigInt(COMPATIBLE.lazyRefcounts))) !== 0n;
  const rawData = (header.autoclearFeatures & (1n << BigInt(AUTOCLEAR.rawExternalData))) !== 0n;
  const data = {
    compat: v3 ? '1.1' : '0.10',
    'compression-type': header.compression,
    ...(v3 ? { 'lazy-refcounts': lazy } : {}),
    ...(bitmaps.length === 0
      ? {}
      : {
          bitmaps: bitmaps.map(({ name, granularityBits, auto, inUse }) => ({
            flags: [...(inUse ? ['in-use'] : []), ...(auto ? ['auto'] : [])],
            name,
            granularity: 2 ** granularityBits,
          })),
        }),
    'refcount-bits': 2 ** header.refcountOrder,
    ...(header.encryptionHeader === undefined || header.encryption !== 2
      ? {}
      : { encrypt: luksInfo((await inspectLuks(path, header.encryptionHeader)).header, 'luks') }),
    ...(header.dataFile === undefined ? {} : { 'data-file': header.dataFile, 'data-file-raw': rawData }),
    ...(v3 ? { corrupt: has(INCOMPATIBLE.corrupt), 'extended-l2': header.extendedL2 } : {}),
  };
  return {
    'virtual-size': header.sizeBytes,
    'cluster-size': header.clusterBytes,
    ...(header.encryption === 0 ? {} : { encrypted: true as const }),
    ...(snapshots.length === 0
      ? {}
      : {
          snapshots: snapshots.map((snapshot) => ({
            ...icountOf(snapshot),
            'vm-clock-nsec': Number(snapshot.vmClock % 1_000_000_000n),
            'vm-clock-sec': Number(snapshot.vmClock / 1_000_000_000n),
            name: snapshot.name,
            'date-sec': snapshot.dateSeconds,
            'date-nsec': snapshot.dateNanoseconds,
            id: snapshot.id,
            'vm-state-size': Number(snapshot.vmStateBytes),
          })),
        }),
    ...(header.backingFile === undefined
      ? {}
      : {
          'backing-filename': header.backingFile,
          'full-backing-filename': besideOf(path, header.backingFile),
          ...(header.backingFormat === undefined ? {} : { 'backing-filename-format': header.backingFormat }),
        }),
    'format-specific': { type: 'qcow2', data },
    'dirty-flag': has(INCOMPATIBLE.dirty),
  };
}

/** Instructions that the guest had run, where its time came from them: after the known extra data; all ones is none. */
function icountOf({ raw: { furtherExtra } }: Qcow2Snapshot): { icount?: number } {
  if (furtherExtra.length < 8) return {};
  const count = new DataView(furtherExtra.buffer, furtherExtra.byteOffset).getBigInt64(0);
  return count < 0n ? {} : { icount: Number(count) };
}

async function vmdkDetails(path: string): Promise<Details> {
  const details = await inspectVmdk(path);
  const grainBytes = details.extents[0]?.grainBytes;
  const data = {
    cid: details.cid,
    'parent-cid': details.parentCid,
    'create-type': details.createType,
    extents: details.extents.map((extent) => ({
      ...(extent.compressed ? { compressed: true } : {}),
      'virtual-size': extent.lengthBytes,
      filename: extent.file ?? path,
      ...(extent.grainBytes === undefined ? {} : { 'cluster-size': extent.grainBytes }),
      format: extent.type,
    })),
  };
  return {
    'virtual-size': details.sizeBytes,
    ...(grainBytes === undefined ? {} : { 'cluster-size': grainBytes }),
    ...(details.parentName === undefined
      ? {}
      : { 'backing-filename': details.parentName, 'full-backing-filename': besideOf(path, details.parentName) }),
    'format-specific': { type: 'vmdk', data },
  };
}

/** A relative name counts from the image's folder; the text is joined as QEMU does, and looked up nowhere. */
function besideOf(path: string, name: string): string {
  if (name.startsWith('/') || /^[^/]*:/.test(name)) return name;
  const folder = path.slice(0, path.lastIndexOf('/') + 1);
  return `${folder}${name}`;
}
