// What protocols/ and emulator/ may use of the platform: present in every browser and in Node.
// Only tsconfig.portable.json reads this file; elsewhere @types/node declares the same names.

interface TextDecoderOptions {
  fatal?: boolean;
}
declare class TextDecoder {
  constructor(label?: string, options?: TextDecoderOptions);
  decode(input?: ArrayBufferView | ArrayBuffer): string;
}
declare class TextEncoder {
  encode(input?: string): Uint8Array<ArrayBuffer>;
}
declare const performance: { now(): number; readonly timeOrigin: number };
declare function setTimeout(handler: () => void, ms?: number): unknown;
declare function clearTimeout(handle: unknown): void;
declare function queueMicrotask(task: () => void): void;
