/** Pixels to encode: numbers 0x00RRGGBB (the top byte is ignored), rows of `width`. */
export interface Picture {
  readonly width: number;
  readonly height: number;
  readonly pixels: Uint32Array;
}
