import { type Cursor, Writer } from '../bytes/mod.ts';

// GPU device, 2D commands (virtio 1.2 §5.7).

export const VIRTIO_GPU_F_EDID = 1;
export const VIRTIO_GPU_MAX_SCANOUTS = 16;
export const VIRTIO_GPU_EVENT_DISPLAY = 1;
export const VIRTIO_GPU_FLAG_FENCE = 1;

export const GPU_COMMAND = {
  getDisplayInfo: 0x0100,
  resourceCreate2d: 0x0101,
  resourceUnref: 0x0102,
  setScanout: 0x0103,
  resourceFlush: 0x0104,
  transferToHost2d: 0x0105,
  resourceAttachBacking: 0x0106,
  resourceDetachBacking: 0x0107,
  getCapsetInfo: 0x0108,
  getCapset: 0x0109,
  getEdid: 0x010a,
  updateCursor: 0x0300,
  moveCursor: 0x0301,
} as const;

export const GPU_RESPONSE = {
  okNodata: 0x1100,
  okDisplayInfo: 0x1101,
  okEdid: 0x1104,
  errUnspec: 0x1200,
  errOutOfMemory: 0x1201,
  errInvalidScanoutId: 0x1202,
  errInvalidResourceId: 0x1203,
  errInvalidContextId: 0x1204,
  errInvalidParameter: 0x1205,
} as const;

/** Where B, G, R and A are in a pixel's four bytes, by `enum virtio_gpu_formats` (bytes in memory order) */
export const GPU_FORMATS: ReadonlyMap<number, { b: number; g: number; r: number; a: number | undefined }> = new Map([
  [1, { b: 0, g: 1, r: 2, a: 3 }], // B8G8R8A8
  [2, { b: 0, g: 1, r: 2, a: undefined }], // B8G8R8X8
  [3, { b: 3, g: 2, r: 1, a: 0 }], // A8R8G8B8
  [4, { b: 3, g: 2, r: 1, a: undefined }], // X8R8G8B8
  [67, { b: 2, g: 1, r: 0, a: 3 }], // R8G8B8A8
  [68, { b: 1, g: 2, r: 3, a: undefined }], // X8B8G8R8
  [121, { b: 1, g: 2, r: 3, a: 0 }], // A8B8G8R8
  [134, { b: 2, g: 1, r: 0, a: undefined }], // R8G8B8X8
]);

export const GPU_HEADER_BYTES = 24;

/** `struct virtio_gpu_ctrl_hdr` */
export interface GpuHeader {
  readonly type: number;
  readonly flags: number;
  readonly fenceId: bigint;
  readonly contextId: number;
  readonly ringIndex: number;
}

/** `struct virtio_gpu_rect`, in pixels */
export interface GpuRectangle {
  readonly x: number;
  readonly y: number;
  readonly width: number;
  readonly height: number;
}

export type GpuCommand =
  | { readonly kind: 'getDisplayInfo' }
  | { readonly kind: 'getEdid'; readonly scanout: number }
  | { readonly kind: 'resourceCreate2d'; readonly resource: number; readonly format: number; readonly width: number; readonly height: number }
  | { readonly kind: 'resourceUnref'; readonly resource: number }
  | { readonly kind: 'setScanout'; readonly rectangle: GpuRectangle; readonly scanout: number; readonly resource: number }
  | { readonly kind: 'resourceFlush'; readonly rectangle: GpuRectangle; readonly resource: number }
  | { readonly kind: 'transferToHost2d'; readonly rectangle: GpuRectangle; readonly offset: bigint; readonly resource: number }
  | { readonly kind: 'resourceAttachBacking'; readonly resource: number; readonly entries: readonly { readonly address: bigint; readonly length: number }[] }
  | { readonly kind: 'resourceDetachBacking'; readonly resource: number }
  | { readonly kind: 'cursor'; readonly update: boolean; readonly scanout: number; readonly x: number; readonly y: number; readonly resource: number; readonly hotX: number; readonly hotY: number }
  | { readonly kind: 'unknown' }; // biome-ignore format: one command a line

/** A backing may have at most this many pieces: 16384 pages of 4 KiB are 64 MiB */
export const MAX_BACKING_ENTRIES = 16384;

export function decodeGpuHeader(cursor: Cursor): GpuHeader {
  const header = {
    type: cursor.u32le('type'),
    flags: cursor.u32le('flags'),
    fenceId: cursor.u64le('fence_id'),
    contextId: cursor.u32le('ctx_id'),
    ringIndex: cursor.u8('ring_idx'),
  };
  cursor.skip(3, 'padding');
  return header;
}

function rectangle(cursor: Cursor): GpuRectangle {
  return { x: cursor.u32le('x'), y: cursor.u32le('y'), width: cursor.u32le('width'), height: cursor.u32le('height') };
}

/** Decodes the body that follows the header: shape only. Bytes after it are allowed, as drivers pad. */
export function decodeGpuCommand(header: GpuHeader, cursor: Cursor): GpuCommand {
  switch (header.type) {
    case GPU_COMMAND.getDisplayInfo:
      return { kind: 'getDisplayInfo' };
    case GPU_COMMAND.getEdid:
      return { kind: 'getEdid', scanout: cursor.u32le('scanout') };
    case GPU_COMMAND.resourceCreate2d:
      return {
        kind: 'resourceCreate2d',
        resource: cursor.u32le('resource_id'),
        format: cursor.u32le('format'),
        width: cursor.u32le('width'),
        height: cursor.u32le('height'),
      };
    case GPU_COMMAND.resourceUnref:
      return { kind: 'resourceUnref', resource: cursor.u32le('resource_id') };
    case GPU_COMMAND.setScanout:
      return {
        kind: 'setScanout',
        rectangle: rectangle(cursor),
        scanout: cursor.u32le('scanout_id'),
        resource: cursor.u32le('resource_id'),
      };
    case GPU_COMMAND.resourceFlush:
      return { kind: 'resourceFlush', rectangle: rectangle(cursor), resource: cursor.u32le('resource_id') };
    case GPU_COMMAND.transferToHost2d:
      return {
        kind: 'transferToHost2d',
        rectangle: rectangle(cursor),
        offset: cursor.u64le('offset'),
        resource: cursor.u32le('resource_id'),
      };
    case GPU_COMMAND.resourceAttachBacking: {
      const resource = cursor.u32le('resource_id');
      const count = cursor.u32le('nr_entries');
      if (count > MAX_BACKING_ENTRIES) {
        throw cursor.error(
          'ERR_WIRE_LIMIT',
          `Cannot attach ${count} pieces of backing: limit is ${MAX_BACKING_ENTRIES}`,
        );
      }
      const entries = [];
      for (let i = 0; i < count; i++) {
        const address = cursor.u64le('addr');
        const length = cursor.u32le('length');
        cursor.skip(4, 'padding');
        entries.push({ address, length });
      }
      return { kind: 'resourceAttachBacking', resource, entries };
    }
    case GPU_COMMAND.resourceDetachBacking:
      return { kind: 'resourceDetachBacking', resource: cursor.u32le('resource_id') };
    case GPU_COMMAND.updateCursor:
    case GPU_COMMAND.moveCursor: {
      const scanout = cursor.u32le('scanout_id');
      const x = cursor.u32le('x');
      const y = cursor.u32le('y');
      cursor.skip(4, 'padding');
      return {
        kind: 'cursor',
        update: header.type === GPU_COMMAND.updateCursor,
        scanout,
        x,
        y,
        resource: cursor.u32le('resource_id'),
        hotX: cursor.u32le('hot_x'),
        hotY: cursor.u32le('hot_y'),
      };
    }
    default:
      return { kind: 'unknown' };
  }
}

/** A response's header: fence, context and ring index of the request where it asked for a fence (§5.7.6.7). */
export function encodeGpuResponse(
  type: number,
  request: GpuHeader,
  body: Uint8Array = new Uint8Array(0),
): Uint8Array<ArrayBuffer> {
  const fenced = (request.flags & VIRTIO_GPU_FLAG_FENCE) !== 0;
  return new Writer(GPU_HEADER_BYTES + body.length)
    .u32le(type)
    .u32le(fenced ? VIRTIO_GPU_FLAG_FENCE : 0)
    .u64le(fenced ? request.fenceId : 0n)
    .u32le(fenced ? request.contextId : 0)
    .u8(fenced ? request.ringIndex : 0)
    .zeroes(3)
    .bytes(body)
    .finish();
}

/** `struct virtio_gpu_resp_display_info` with one enabled scanout. */
export function encodeDisplayInfo(width: number, height: number): Uint8Array<ArrayBuffer> {
  const writer = new Writer(VIRTIO_GPU_MAX_SCANOUTS * 24);
  writer.u32le(0).u32le(0).u32le(width).u32le(height).u32le(1).u32le(0);
  return writer.zeroes((VIRTIO_GPU_MAX_SCANOUTS - 1) * 24).finish();
}

/** `struct virtio_gpu_resp_edid` */
export function encodeEdidResponse(edid: Uint8Array): Uint8Array<ArrayBuffer> {
  return new Writer(8 + 1024)
    .u32le(edid.length)
    .u32le(0)
    .bytes(edid)
    .zeroes(1024 - edid.length)
    .finish();
}

/**
 * A base EDID block (VESA E-EDID 1.4) that prefers one mode, at about 60 Hz with reduced blanking, as flat
 * panels have it.
 */
export function encodeEdid(width: number, height: number): Uint8Array<ArrayBuffer> {
  const edid = new Uint8Array(128);
  const view = new DataView(edid.buffer);
  edid.set([0, 255, 255, 255, 255, 255, 255, 0]);
  view.setUint16(8, (3 << 10) | (1 << 5) | 19); // "CAS", five bits a letter from A = 1
  edid.set([0x01, 0x00, 1, 0, 0, 0, 0, 36, 1, 4], 10); // product, serial, week, year 2026, version 1.4
  edid[20] = 0xa5; // digital, 8 bits a colour, DisplayPort
  edid[21] = Math.min(255, Math.round((width * 2.54) / 96)); // size in cm at 96 dpi
  edid[22] = Math.min(255, Math.round((height * 2.54) / 96));
  edid[23] = 120; // gamma 2.2
  edid[24] = 0x06; // sRGB, preferred timing is native
  edid.set([0xee, 0x91, 0xa3, 0x54, 0x4c, 0x99, 0x26, 0x0f, 0x50, 0x54], 25); // sRGB primaries
  edid.fill(1, 38, 54); // no standard timings
  // Detailed timing: blanking 160 × 30, sync inside it
  const [hBlank, vBlank] = [160, 30];
  view.setUint16(54, Math.min(65535, Math.round(((width + hBlank) * (height + vBlank) * 60) / 10_000)), true);
  edid[56] = width & 255;
  edid[57] = hBlank & 255;
  edid[58] = ((width >> 8) << 4) | (hBlank >> 8);
  edid[59] = height & 255;
  edid[60] = vBlank & 255;
  edid[61] = ((height >> 8) << 4) | (vBlank >> 8);
  edid[62] = 48;
  edid[63] = 32;
  edid[64] = (3 << 4) | 6;
  edid[71] = 0x1e; // digital separate sync, both positive
  // Display name
  edid.set([0, 0, 0, 0xfc, 0], 72);
  edid.set(
    [...'Caisson\n     '].map((c) => c.charCodeAt(0)),
    77,
  );
  edid.set([0, 0, 0, 0x10, 0], 90); // unused
  edid.set([0, 0, 0, 0x10, 0], 108);
  let sum = 0;
  for (let i = 0; i < 127; i++) sum += edid[i]!;
  edid[127] = (256 - (sum & 255)) & 255;
  return edid;
}
