// Words of the shared memory that belong to the machine as a whole (memory/layout.ts MACHINE_WORDS), and the slices
// of the devices that every thread serves.
import { Aclint } from '../devices/aclint/mod.ts';
import { GoldfishRtc } from '../devices/goldfish_rtc/device.ts';
import { PciShared } from '../devices/pci/shared.ts';
import { Plic } from '../devices/plic/mod.ts';
import { Uart16550 } from '../devices/uart16550/device.ts';
import { MmioInterrupt } from '../devices/virtio/mmio_interrupt.ts';
import { DEVICE_WORDS, DEVICE_WORDS_BYTES, MACHINE_WORDS } from '../memory/layout.ts';
import { VIRTIO_MMIO_SLOTS } from './memory_map.ts';

/** f64: wall-clock milliseconds that the time base counts from */
export const TIME_EPOCH = MACHINE_WORDS;
/** f64: ticks to add to the host's; f64: ticks while stopped; i32: 1 while time runs */
export const TIME_OFFSET = MACHINE_WORDS + 8;
export const TIME_FROZEN = MACHINE_WORDS + 16;
export const TIME_RUNNING = MACHINE_WORDS + 24;
/** i32: counts what the main thread should look at: mailboxes, pauses, guest events */
export const MAIN_DOORBELL = MACHINE_WORDS + 64;
/** i32: what the guest asked for (GUEST_ values), and its exit code */
export const GUEST_REQUEST = MACHINE_WORDS + 68;
export const GUEST_EXIT_CODE = MACHINE_WORDS + 72;
/** i32: 0..99, share of time that harts sleep */
export const THROTTLE = MACHINE_WORDS + 76;

/** i32: stays 0, so that a wait on it is a sleep */
export const NEVER = MACHINE_WORDS + 80;

export const GUEST_NONE = 0;
export const GUEST_SHUTDOWN = 1;
export const GUEST_RESET = 2;
export const GUEST_FAILURE = 3;

// Attention bits (HART_ATTENTION): why the hart's thread should leave the guest
export const ATTENTION_PAUSE = 1;
export const ATTENTION_EXIT = 2;
export const ATTENTION_FENCE = 4;
export const ATTENTION_FENCE_I = 8;

// HART_RUN_STATE
export const RUN_STATE_PAUSED = 0;
export const RUN_STATE_RUNNING = 1;
export const RUN_STATE_ENDED = 2;

const LINE_WORDS = 16;

/** Slices, each on cache lines of its own */
export function deviceWords(buffer: SharedArrayBuffer): {
  plic: Int32Array;
  aclint: Int32Array;
  uart: Int32Array;
  rtc: Int32Array;
  pci: Int32Array;
  /** Of each virtio-mmio slot */
  mmio: Int32Array[];
} {
  let at = DEVICE_WORDS;
  const slice = (words: number): Int32Array => {
    const view = new Int32Array(buffer, at, words);
    at += Math.ceil(words / LINE_WORDS) * LINE_WORDS * 4;
    if (at > DEVICE_WORDS + DEVICE_WORDS_BYTES) throw new RangeError('Device words do not fit their area');
    return view;
  };
  return {
    plic: slice(Plic.WORDS),
    aclint: slice(Aclint.WORDS),
    uart: slice(Uart16550.WORDS),
    rtc: slice(GoldfishRtc.WORDS),
    pci: slice(PciShared.WORDS),
    mmio: Array.from({ length: VIRTIO_MMIO_SLOTS }, () => slice(MmioInterrupt.WORDS)),
  };
}
