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
      // The specification says unsigned, but drivers send the position of a pointer that is partly off the screen
      const x = cursor.u32le('x') | 0;
      const y = cursor.u32le('y') | 0;
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
