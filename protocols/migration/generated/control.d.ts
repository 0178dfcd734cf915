// Types of control.js as control.ts uses it: what decode() gives is from a peer, so every field is unknown.
interface Writer {
  finish(): Uint8Array;
}
export namespace caisson {
  namespace migration {
    const Control: {
      encode(message: { [field: string]: unknown }): Writer;
      decode(bytes: Uint8Array): { readonly body?: string; readonly [field: string]: unknown };
    };
  }
}
