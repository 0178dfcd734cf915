import { Cursor, Writer } from '../bytes/mod.ts';

// Console device (virtio 1.2 §5.3).

export const VIRTIO_CONSOLE_F_SIZE = 0;
export const VIRTIO_CONSOLE_F_EMERG_WRITE = 2;

export const VIRTIO_CONSOLE_CONFIG_BYTES = 12;
/** Offset of `emerg_wr` in the configuration */
export const VIRTIO_CONSOLE_EMERG_WR = 8;

/** `struct virtio_console_config` without `emerg_wr`, which only the driver writes */
export interface VirtioConsoleConfig {
  readonly cols: number;
  readonly rows: number;
  readonly maxPorts: number;
}

export function encodeVirtioConsoleConfig(config: VirtioConsoleConfig): Uint8Array<ArrayBuffer> {
  return new Writer(VIRTIO_CONSOLE_CONFIG_BYTES)
    .u16le(config.cols)
    .u16le(config.rows)
    .u32le(config.maxPorts)
    .u32le(0)
    .finish();
}

export function decodeVirtioConsoleConfig(bytes: Uint8Array): VirtioConsoleConfig {
  const cursor = new Cursor(bytes, 'virtio_console_config');
  const config = { cols: cursor.u16le('cols'), rows: cursor.u16le('rows'), maxPorts: cursor.u32le('max_nr_ports') };
  cursor.skip(4, 'emerg_wr');
  cursor.end();
  return config;
}
