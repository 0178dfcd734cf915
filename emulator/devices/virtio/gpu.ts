import type { Observable } from 'rxjs';
import { Subject } from 'rxjs/internal/Subject';
import { Cursor, WireError } from '../../../protocols/bytes/mod.ts';
import {
  decodeGpuCommand,
  decodeGpuHeader,
  EDID_MAX_SIDE,
  encodeDisplayInfo,
  encodeEdid,
  encodeEdidResponse,
  encodeGpuResponse,
  featureMask,
  GPU_HEADER_BYTES,
  GPU_RESPONSE,
  type GpuCommand,
  type GpuHeader,
  type GpuRectangle,
  VIRTIO_GPU_EVENT_DISPLAY,
  VIRTIO_GPU_F_EDID,
  VIRTIO_ID_GPU,
} from '../../../protocols/virtio/mod.ts';
import { StateReader } from '../../state/read_state.ts';
import { StateError, type StateValue } from '../../state/state.ts';
import type { CursorImage, DisplayEvent, DisplayHead, Surface } from '../backends.ts';
import type { Chain } from './chain.ts';
import { VirtioDevice, type VirtioDeviceOptions } from './device.ts';
import { type BackingEntry, type GpuResource, MAX_SIDE, type ResourceError, ResourceTable } from './gpu_resources.ts';
import type { VirtQueue } from './queue.ts';

const CONTROL_QUEUE = 0;
const CURSOR_SIDE = 64;
/** Smallest scanout and smallest size to ask for, in `pixels` */
const MIN_SCANOUT_SIDE = 16;
const MIN_PREFERRED_SIDE = 64;
/** An attach of the largest backing */
const MAX_COMMAND_BYTES = 512 * 1024;
const HIDDEN: CursorImage = { width: 0, height: 0, hotX: 0, hotY: 0, pixels: new Uint8Array(0) };

/**
 * GPU device, 2D, one scanout (virtio 1.2 §5.7). Pixels reach the surface by transfer and flush only; every
 * rectangle is checked against its resource in subtract form, so no copy reads or writes beyond it.
 */
export class VirtioGpu extends VirtioDevice implements DisplayHead {
  readonly events: Observable<DisplayEvent>;
  readonly #events = new Subject<DisplayEvent>();
  readonly #resources: ResourceTable;
  #preferred = { width: 1280, height: 800 };
  #pendingEvents = 0;
  #scanout: { resource: number; rectangle: GpuRectangle } | undefined;
  #surface: Surface | undefined;
  #cursor: CursorImage | undefined;

  constructor(options: VirtioDeviceOptions) {
    super(options, {
      name: 'virtio-gpu',
      virtioId: VIRTIO_ID_GPU,
      features: featureMask(VIRTIO_GPU_F_EDID),
      queues: [
        { maxSize: 256, maxChainBytes: MAX_COMMAND_BYTES },
        { maxSize: 16, maxChainBytes: 4096 },
      ],
    });
    this.events = this.#events.asObservable();
    this.#resources = new ResourceTable(options.memory);
  }

  get surface(): Surface | undefined {
    return this.#surface;
  }
  get cursor(): CursorImage | undefined {
    return this.#cursor;
  }

  requestSize(width: number, height: number): void {
    if (!Number.isFinite(width) || !Number.isFinite(height)) return;
    const side = (value: number): number => Math.max(MIN_PREFERRED_SIDE, Math.min(EDID_MAX_SIDE, Math.floor(value)));
    // Modes have widths of whole characters, eight pixels
    const next = { width: side(width) & ~7, height: side(height) };
    if (next.width === this.#preferred.width && next.height === this.#preferred.height) return;
    this.#preferred = next;
    this.#pendingEvents |= VIRTIO_GPU_EVENT_DISPLAY;
    this.configChanged();
  }

  /** events_read, events_clear, num_scanouts, num_capsets */
  protected config(): Uint8Array {
    const bytes = new Uint8Array(16);
    const view = new DataView(bytes.buffer);
    view.setUint32(0, this.#pendingEvents, true);
    view.setUint32(8, 1, true);
    return bytes;
  }

  override writeConfig(offset: number, size: number, value: number): void {
    if (offset === 4 && size === 4) this.#pendingEvents &= ~value;
  }

  protected serve(queue: VirtQueue): void {
    this.drain(queue, (chain) => {
      const response = this.#run(queue.index, chain);
      const room = Math.min(response.length, chain.writableBytes);
      chain.write(0, response.subarray(0, room));
      this.finish(queue, chain, room);
    });
  }

  #run(queue: number, chain: Chain): Uint8Array {
    if (chain.readableBytes < GPU_HEADER_BYTES) {
      this.report('a command shorter than its header');
      return encodeGpuResponse(GPU_RESPONSE.errUnspec, NO_HEADER);
    }
    const cursor = new Cursor(chain.read(0, chain.readableBytes), 'virtio_gpu command');
    const header = decodeGpuHeader(cursor);
    let command: GpuCommand;
    try {
      command = decodeGpuCommand(header, cursor);
    } catch (error) {
      if (!(error instanceof WireError)) throw error;
      // Shape errors are the driver's to hear, not a reason to break the device
      return encodeGpuResponse(GPU_RESPONSE.errInvalidParameter, header);
    }
    if (queue === CONTROL_QUEUE ? command.kind === 'cursor' : command.kind !== 'cursor') {
      return encodeGpuResponse(GPU_RESPONSE.errUnspec, header);
    }
    const result = this.#execute(command);
    return typeof result === 'number'
      ? encodeGpuResponse(result, header)
      : encodeGpuResponse(result.type, header, result.body);
  }

  #execute(command: GpuCommand): number | { type: number; body: Uint8Array } {
    const { width, height } = this.#preferred;
    switch (command.kind) {
      case 'getDisplayInfo':
        return { type: GPU_RESPONSE.okDisplayInfo, body: encodeDisplayInfo(width, height) };
      case 'getEdid':
        if (command.scanout !== 0) return GPU_RESPONSE.errInvalidScanoutId;
        return { type: GPU_RESPONSE.okEdid, body: encodeEdidResponse(encodeEdid(width, height)) };
      case 'resourceCreate2d':
        return answer(this.#resources.create(command.resource, command.format, command.width, command.height));
      case 'resourceUnref':
        if (!this.#resources.remove(command.resource)) return GPU_RESPONSE.errInvalidResourceId;
        if (this.#scanout?.resource === command.resource) this.#disableScanout();
        return GPU_RESPONSE.okNodata;
      case 'resourceAttachBacking':
        return this.#attach(command.resource, command.entries);
      case 'resourceDetachBacking': {
        const resource = this.#resources.get(command.resource);
        if (resource === undefined) return GPU_RESPONSE.errInvalidResourceId;
        this.#resources.detach(resource);
        return GPU_RESPONSE.okNodata;
      }
      case 'transferToHost2d':
        return this.#transfer(command);
      case 'setScanout':
        return this.#setScanout(command);
      case 'resourceFlush':
        return this.#flush(command.resource, command.rectangle);
      case 'cursor':
        return this.#moveCursor(command);
      default:
        return GPU_RESPONSE.errUnspec;
    }
  }

  #attach(id: number, entries: readonly BackingEntry[]): number {
    const resource = this.#resources.get(id);
    if (resource === undefined) return GPU_RESPONSE.errInvalidResourceId;
    return answer(this.#resources.attach(resource, entries));
  }

  #transfer(command: Extract<GpuCommand, { kind: 'transferToHost2d' }>): number {
    const resource = this.#resources.get(command.resource);
    if (resource === undefined) return GPU_RESPONSE.errInvalidResourceId;
    const { backing } = resource;
    if (backing === undefined) return GPU_RESPONSE.errUnspec;
    const { rectangle } = command;
    if (!inside(rectangle, resource) || command.offset > BigInt(resource.pixels.length)) {
      return GPU_RESPONSE.errInvalidParameter;
    }
    const stride = resource.width * 4;
    const rowBytes = rectangle.width * 4;
    for (let row = 0; row < rectangle.height; row++) {
      const to = (rectangle.y + row) * stride + rectangle.x * 4;
      // What the backing does not have stays as it was
      backing.read(this.memory, Number(command.offset) + row * stride, resource.pixels.subarray(to, to + rowBytes));
    }
    resource.convert(rectangle);
    return GPU_RESPONSE.okNodata;
  }

  #setScanout({ scanout, resource: id, rectangle }: Extract<GpuCommand, { kind: 'setScanout' }>): number {
    if (scanout !== 0) return GPU_RESPONSE.errInvalidScanoutId;
    if (id === 0) {
      this.#disableScanout();
      return GPU_RESPONSE.okNodata;
    }
    const resource = this.#resources.get(id);
    if (resource === undefined) return GPU_RESPONSE.errInvalidResourceId;
    const { width, height } = rectangle;
    if (!inside(rectangle, resource) || width < MIN_SCANOUT_SIDE || height < MIN_SCANOUT_SIDE) {
      return GPU_RESPONSE.errInvalidParameter;
    }
    this.#showScanout(id, resource, rectangle);
    return GPU_RESPONSE.okNodata;
  }

  #showScanout(id: number, resource: GpuResource, rectangle: GpuRectangle): void {
    this.#scanout = { resource: id, rectangle };
    const strideBytes = resource.width * 4;
    const start = rectangle.y * strideBytes + rectangle.x * 4;
    const end = (rectangle.y + rectangle.height - 1) * strideBytes + (rectangle.x + rectangle.width) * 4;
    this.#surface = {
      width: rectangle.width,
      height: rectangle.height,
      strideBytes,
      pixels: resource.shown.subarray(start, end),
    };
    this.#events.next({ kind: 'surface', surface: this.#surface });
  }

  #disableScanout(): void {
    if (this.#scanout === undefined) return;
    this.#scanout = undefined;
    // A viewer sees black rather than the last picture of a guest that has switched its screen off
    const { width, height } = this.#surface ?? this.#preferred;
    this.#surface = { width, height, strideBytes: width * 4, pixels: new Uint8Array(width * height * 4) };
    this.#events.next({ kind: 'surface', surface: this.#surface });
  }

  #flush(id: number, rectangle: GpuRectangle): number {
    const resource = this.#resources.get(id);
    if (resource === undefined) return GPU_RESPONSE.errInvalidResourceId;
    if (!inside(rectangle, resource)) return GPU_RESPONSE.errInvalidParameter;
    const scanout = this.#scanout;
    if (scanout?.resource !== id) return GPU_RESPONSE.okNodata;
    const left = Math.max(rectangle.x, scanout.rectangle.x);
    const top = Math.max(rectangle.y, scanout.rectangle.y);
    const right = Math.min(rectangle.x + rectangle.width, scanout.rectangle.x + scanout.rectangle.width);
    const bottom = Math.min(rectangle.y + rectangle.height, scanout.rectangle.y + scanout.rectangle.height);
    if (right > left && bottom > top) {
      this.#events.next({
        kind: 'damage',
        rectangle: {
          x: left - scanout.rectangle.x,
          y: top - scanout.rectangle.y,
          width: right - left,
          height: bottom - top,
        },
      });
    }
    return GPU_RESPONSE.okNodata;
  }

  #moveCursor(command: Extract<GpuCommand, { kind: 'cursor' }>): number {
    if (command.scanout !== 0) return GPU_RESPONSE.errInvalidScanoutId;
    if (command.update) {
      const resource = this.#resources.get(command.resource);
      if (command.resource !== 0 && resource === undefined) return GPU_RESPONSE.errInvalidResourceId;
      if (resource !== undefined && (resource.width !== CURSOR_SIDE || resource.height !== CURSOR_SIDE)) {
        return GPU_RESPONSE.errInvalidParameter;
      }
      this.#cursor =
        resource === undefined
          ? HIDDEN
          : {
              width: CURSOR_SIDE,
              height: CURSOR_SIDE,
              hotX: Math.min(command.hotX, CURSOR_SIDE - 1),
              hotY: Math.min(command.hotY, CURSOR_SIDE - 1),
              pixels: resource.image(),
            };
      this.#events.next({ kind: 'cursor', cursor: this.#cursor });
    }
    this.#events.next({ kind: 'cursor-position', x: onScreen(command.x), y: onScreen(command.y) });
    return GPU_RESPONSE.okNodata;
  }

  protected override resetModel(): void {
    this.#resources.clear();
    this.#disableScanout();
    if (this.#cursor !== undefined) this.#events.next({ kind: 'cursor', cursor: HIDDEN });
    this.#cursor = undefined;
    this.#pendingEvents = 0;
  }

  protected saveModel(): StateValue {
    return {
      preferred: { ...this.#preferred },
      pendingEvents: this.#pendingEvents,
      resources: this.#resources.save(),
      scanouts: this.#scanout === undefined ? [] : [{ resource: this.#scanout.resource, ...this.#scanout.rectangle }],
      cursors: this.#cursor === undefined ? [] : [{ ...this.#cursor }],
    };
  }

  protected prepareModel(reader: StateReader): () => void {
    const preferredReader = reader.map('preferred');
    const preferred = {
      width: preferredReader.integer('width', MIN_PREFERRED_SIDE, EDID_MAX_SIDE),
      height: preferredReader.integer('height', MIN_PREFERRED_SIDE, EDID_MAX_SIDE),
    };
    const pendingEvents = reader.integer('pendingEvents', 0, VIRTIO_GPU_EVENT_DISPLAY);
    const resources = new ResourceTable(this.memory);
    resources.load(reader);
    const scanout = reader.list('scanouts', 1, (item, where) => {
      const fields = new StateReader(where, item);
      const rectangle = {
        x: fields.integer('x', 0, MAX_SIDE),
        y: fields.integer('y', 0, MAX_SIDE),
        width: fields.integer('width', MIN_SCANOUT_SIDE, MAX_SIDE),
        height: fields.integer('height', MIN_SCANOUT_SIDE, MAX_SIDE),
      };
      const id = fields.u32('resource');
      const resource = resources.get(id);
      if (resource === undefined || !inside(rectangle, resource))
        throw new StateError(where, 'not inside its resource');
      return { id, rectangle };
    })[0];
    const cursor = reader.list('cursors', 1, (item, where) => {
      const fields = new StateReader(where, item);
      const side = fields.integer('width', 0, CURSOR_SIDE);
      if (side !== 0 && side !== CURSOR_SIDE) throw new StateError(where, `a cursor of ${side} pixels`);
      return {
        width: side,
        height: side,
        hotX: fields.integer('hotX', 0, CURSOR_SIDE - 1),
        hotY: fields.integer('hotY', 0, CURSOR_SIDE - 1),
        pixels: fields.bytes('pixels', side * side * 4, side * side * 4).slice(),
      };
    })[0];
    return () => {
      this.#preferred = preferred;
      this.#pendingEvents = pendingEvents;
      this.#resources.replace(resources);
      this.#cursor = cursor;
      if (scanout !== undefined) this.#showScanout(scanout.id, this.#resources.get(scanout.id)!, scanout.rectangle);
      if (cursor !== undefined) this.#events.next({ kind: 'cursor', cursor });
    };
  }
}

const NO_HEADER: GpuHeader = { type: 0, flags: 0, fenceId: 0n, contextId: 0, ringIndex: 0 };

function inside(rectangle: GpuRectangle, { width, height }: { width: number; height: number }): boolean {
  return (
    rectangle.x <= width &&
    rectangle.y <= height &&
    rectangle.width <= width - rectangle.x &&
    rectangle.height <= height - rectangle.y
  );
}

/** A pointer that is partly off the screen at the left or top stands at its edge. */
function onScreen(position: number): number {
  return Math.max(0, Math.min(MAX_SIDE, position));
}

function answer(error: ResourceError | undefined): number {
  switch (error) {
    case undefined:
      return GPU_RESPONSE.okNodata;
    case 'memory':
      return GPU_RESPONSE.errOutOfMemory;
    case 'id':
      return GPU_RESPONSE.errInvalidResourceId;
    case 'parameter':
      return GPU_RESPONSE.errInvalidParameter;
    case 'backed':
      return GPU_RESPONSE.errUnspec;
  }
}
