import type { CursorImage, DisplayEvent } from '../../../../emulator/devices/backends.ts';
import { VirtioGpu } from '../../../../emulator/devices/virtio/mod.ts';
import { type GuestMemory, RAM_BASE } from '../../../../emulator/memory/guest_memory.ts';
import { Writer } from '../../../../protocols/bytes/mod.ts';
import { GPU_COMMAND, type GpuRectangle } from '../../../../protocols/virtio/mod.ts';
import { Driver, makeMemory, PciRegisters } from './driver.ts';

export const RESPONSE_BYTES = 24;
/** Where tests keep pictures in guest memory: behind the rings and buffers of both queues */
export const PICTURES = RAM_BASE + 0x30_0000;
export const B8G8R8X8 = 2;

export interface GpuRig {
  readonly memory: GuestMemory;
  readonly device: VirtioGpu;
  readonly driver: Driver;
  readonly registers: PciRegisters;
  readonly events: DisplayEvent[];
  /** Runs one command; gives the response's type */
  run(type: number, body?: Uint8Array, options?: { queue?: number }): number;
  /** The same, whole response */
  respond(type: number, body: Uint8Array, room: number, header?: Partial<GpuTestHeader>): Uint8Array;
}

export interface GpuTestHeader {
  readonly flags: number;
  readonly fence: bigint;
  readonly context: number;
}

export function startGpu(memory: GuestMemory = makeMemory(2048)): GpuRig {
  const device = new VirtioGpu({ memory, id: 'virtio-gpu0' });
  const registers = new PciRegisters(device);
  const driver = new Driver(memory, registers).start();
  const events: DisplayEvent[] = [];
  device.events.subscribe((event) => events.push(event));
  const respond: GpuRig['respond'] = (type, body, room, header) => {
    const queue = driver.queues[0]!;
    queue.submit([gpuCommand(type, body, header), { writable: room }]);
    return queue.takeUsed()[0]!.written;
  };
  return {
    memory,
    device,
    driver,
    registers,
    events,
    respond,
    run: (type, body = new Uint8Array(0), options = {}) => {
      const queue = driver.queues[options.queue ?? 0]!;
      queue.submit([gpuCommand(type, body), { writable: RESPONSE_BYTES }]);
      const [used] = queue.takeUsed();
      return used === undefined ? 0 : new DataView(used.written.buffer).getUint32(0, true);
    },
  };
}

export function gpuCommand(type: number, body: Uint8Array, header: Partial<GpuTestHeader> = {}): Uint8Array {
  return new Writer()
    .u32le(type)
    .u32le(header.flags ?? 0)
    .u64le(header.fence ?? 0n)
    .u32le(header.context ?? 0)
    .zeroes(4)
    .bytes(body)
    .finish();
}

export function words(...values: number[]): Uint8Array {
  const writer = new Writer();
  for (const value of values) writer.u32le(value >>> 0);
  return writer.finish();
}

function rectangleWords({ x, y, width, height }: GpuRectangle): Uint8Array {
  return words(x, y, width, height);
}

export function create(rig: GpuRig, id: number, width: number, height: number, format = B8G8R8X8): number {
  return rig.run(GPU_COMMAND.resourceCreate2d, words(id, format, width, height));
}

export function attach(
  rig: GpuRig,
  id: number,
  entries: readonly (readonly [number | bigint, number])[],
  count = entries.length,
): number {
  const writer = new Writer().u32le(id).u32le(count);
  for (const [address, length] of entries) writer.u64le(BigInt(address)).u32le(length).zeroes(4);
  return rig.run(GPU_COMMAND.resourceAttachBacking, writer.finish());
}

export function transfer(rig: GpuRig, id: number, rectangle: GpuRectangle, offset: number | bigint = 0): number {
  const body = new Writer().bytes(rectangleWords(rectangle)).u64le(BigInt(offset)).u32le(id).zeroes(4).finish();
  return rig.run(GPU_COMMAND.transferToHost2d, body);
}

export function setScanout(rig: GpuRig, id: number, rectangle: GpuRectangle, scanout = 0): number {
  return rig.run(
    GPU_COMMAND.setScanout,
    new Writer().bytes(rectangleWords(rectangle)).u32le(scanout).u32le(id).finish(),
  );
}

export function flush(rig: GpuRig, id: number, rectangle: GpuRectangle): number {
  return rig.run(GPU_COMMAND.resourceFlush, new Writer().bytes(rectangleWords(rectangle)).u32le(id).zeroes(4).finish());
}

export function cursor(
  rig: GpuRig,
  id: number,
  at: { x: number; y: number; hotX?: number; hotY?: number; scanout?: number; update?: boolean },
): number {
  const body = words(at.scanout ?? 0, at.x, at.y, 0, id, at.hotX ?? 0, at.hotY ?? 0, 0);
  return rig.run(at.update === false ? GPU_COMMAND.moveCursor : GPU_COMMAND.updateCursor, body, { queue: 1 });
}

/** A shown picture of one resource, all of it, with its pixels at PICTURES. */
export function show(rig: GpuRig, id: number, width: number, height: number, format = B8G8R8X8): GpuRectangle {
  const rectangle = { x: 0, y: 0, width, height };
  create(rig, id, width, height, format);
  attach(rig, id, [[PICTURES, width * height * 4]]);
  setScanout(rig, id, rectangle);
  return rectangle;
}

export function lastCursor(rig: GpuRig): CursorImage | undefined {
  const event = rig.events.findLast((found) => found.kind === 'cursor');
  return event?.kind === 'cursor' ? event.cursor : undefined;
}
