// EDID base block (VESA Enhanced EDID 1.4 §3) of a flat panel with one preferred mode.

export const EDID_BYTES = 128;
/** A detailed timing has 12 bits for each active size (§3.10.2), in `pixels` */
export const EDID_MAX_SIDE = 4095;
/** And 16 bits for the pixel clock, in units of 10 kHz; readers take less than 10 MHz for damage */
const MAX_CLOCK = 0xffff;
const MIN_CLOCK = 1000;
const DETAILED_TIMING = 54;
const DISPLAY_NAME = 72;
const DUMMY_DESCRIPTORS = [90, 108] as const;
// Blanking of every mode, in `pixels` and `lines`: sync pulses fit into it
const HORIZONTAL_BLANKING = 160;
/** At least; small modes get more, so that their clock is high enough */
const VERTICAL_BLANKING = 30;
const HORIZONTAL_FRONT_PORCH = 48;
const HORIZONTAL_SYNC = 32;
const VERTICAL_FRONT_PORCH = 3;
const VERTICAL_SYNC = 6;
const REFRESH_HZ = 60;
const DOTS_PER_INCH = 96;
const MM_PER_INCH = 25.4;

/**
 * A base block that prefers `width` × `height` at 60 Hz, or as near to it as the pixel clock's field allows.
 * Both sizes are in `pixels`, 1..EDID_MAX_SIDE.
 */
export function encodeEdid(width: number, height: number): Uint8Array<ArrayBuffer> {
  for (const side of [width, height]) {
    if (!Number.isInteger(side) || side < 1 || side > EDID_MAX_SIDE) {
      throw new RangeError(`Cannot describe a display of ${width}x${height}: sides are 1..${EDID_MAX_SIDE}`);
    }
  }
  const widthMm = Math.round((width * MM_PER_INCH) / DOTS_PER_INCH);
  const heightMm = Math.round((height * MM_PER_INCH) / DOTS_PER_INCH);
  const edid = new Uint8Array(EDID_BYTES);
  const view = new DataView(edid.buffer);
  edid.set([0, 255, 255, 255, 255, 255, 255, 0]);
  view.setUint16(8, (3 << 10) | (1 << 5) | 19); // "CAS", five bits a letter from A = 1
  edid.set([0x01, 0x00, 1, 0, 0, 0, 0, 36, 1, 4], 10); // product, serial, week, year 2026, version 1.4
  edid[20] = 0xa5; // digital, 8 bits a colour, DisplayPort
  edid[21] = Math.min(255, Math.round(widthMm / 10));
  edid[22] = Math.min(255, Math.round(heightMm / 10));
  edid[23] = 120; // gamma 2.2
  edid[24] = 0x06; // sRGB, the preferred timing is native
  edid.set([0xee, 0x91, 0xa3, 0x54, 0x4c, 0x99, 0x26, 0x0f, 0x50, 0x54], 25); // sRGB primaries
  edid.fill(1, 38, 54); // no standard timings
  encodeDetailedTiming(edid.subarray(DETAILED_TIMING), width, height, widthMm, heightMm);
  edid.set([0, 0, 0, 0xfc, 0], DISPLAY_NAME);
  edid.set(
    [...'Caisson\n     '].map((character) => character.charCodeAt(0)),
    DISPLAY_NAME + 5,
  );
  for (const at of DUMMY_DESCRIPTORS) edid.set([0, 0, 0, 0x10, 0], at);
  let sum = 0;
  for (let index = 0; index < EDID_BYTES - 1; index++) sum += edid[index]!;
  edid[EDID_BYTES - 1] = -sum & 0xff;
  return edid;
}

function encodeDetailedTiming(
  timing: Uint8Array,
  width: number,
  height: number,
  widthMm: number,
  heightMm: number,
): void {
  const columns = width + HORIZONTAL_BLANKING;
  const lines = Math.max(height + VERTICAL_BLANKING, Math.ceil((MIN_CLOCK * 10_000) / (columns * REFRESH_HZ)));
  const blankLines = lines - height;
  const clock = Math.min(MAX_CLOCK, Math.round((columns * lines * REFRESH_HZ) / 10_000));
  timing.set([clock & 0xff, clock >> 8]);
  timing[2] = width & 0xff;
  timing[3] = HORIZONTAL_BLANKING;
  timing[4] = (width >> 8) << 4;
  timing[5] = height & 0xff;
  timing[6] = blankLines & 0xff;
  timing[7] = ((height >> 8) << 4) | (blankLines >> 8);
  timing[8] = HORIZONTAL_FRONT_PORCH;
  timing[9] = HORIZONTAL_SYNC;
  timing[10] = (VERTICAL_FRONT_PORCH << 4) | VERTICAL_SYNC;
  timing[12] = widthMm & 0xff;
  timing[13] = heightMm & 0xff;
  timing[14] = ((widthMm >> 8) << 4) | (heightMm >> 8);
  timing[17] = 0x1e; // digital separate sync, both positive
}
