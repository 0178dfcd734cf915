/** Where a keysym sits on a keyboard. `shift` undefined: the key means the same with and without. */
export interface KeyPosition {
  readonly evdev: number;
  readonly shift: boolean | undefined;
}

/** Rows of a US keyboard as evdev numbers them: first code, characters without and with Shift. */
const ROWS: readonly (readonly [number, string, string])[] = [
  [2, '1234567890-=', '!@#$%^&*()_+'],
  [16, 'qwertyuiop[]', 'QWERTYUIOP{}'],
  [30, "asdfghjkl;'`", 'ASDFGHJKL:"~'],
  [43, '\\zxcvbnm,./', '|ZXCVBNM<>?'],
];

/** Keysyms of X11 that are not characters: [keysym, evdev]. */
const NAMED: readonly (readonly [number, number])[] = [
  [0x20, 57],
  [0xff08, 14], // BackSpace
  [0xff09, 15], // Tab
  [0xfe20, 15], // ISO_Left_Tab: Shift is down already
  [0xff0a, 28], // Linefeed
  [0xff0d, 28], // Return
  [0xff13, 119], // Pause
  [0xff14, 70], // Scroll_Lock
  [0xff15, 99], // Sys_Req
  [0xff1b, 1], // Escape
  [0xff50, 102], // Home
  [0xff51, 105],
  [0xff52, 103],
  [0xff53, 106],
  [0xff54, 108],
  [0xff55, 104], // Page_Up
  [0xff56, 109],
  [0xff57, 107], // End
  [0xff61, 99], // Print
  [0xff63, 110], // Insert
  [0xff67, 127], // Menu
  [0xff6b, 119], // Break
  [0xff7e, 100], // Mode_switch
  [0xff7f, 69], // Num_Lock
  [0xff80, 57], // KP_Space
  [0xff89, 15], // KP_Tab
  [0xff8d, 96], // KP_Enter
  [0xff95, 71], // KP_Home and so on to KP_Delete
  [0xff96, 75],
  [0xff97, 72],
  [0xff98, 77],
  [0xff99, 80],
  [0xff9a, 73],
  [0xff9b, 81],
  [0xff9c, 79],
  [0xff9d, 76],
  [0xff9e, 82],
  [0xff9f, 83],
  [0xffaa, 55], // KP_Multiply
  [0xffab, 78],
  [0xffac, 121], // KP_Separator
  [0xffad, 74],
  [0xffae, 83],
  [0xffaf, 98], // KP_Divide
  [0xffb0, 82], // KP_0 to KP_9
  [0xffb1, 79],
  [0xffb2, 80],
  [0xffb3, 81],
  [0xffb4, 75],
  [0xffb5, 76],
  [0xffb6, 77],
  [0xffb7, 71],
  [0xffb8, 72],
  [0xffb9, 73],
  [0xffbd, 117], // KP_Equal
  [0xffe1, 42], // Shift_L
  [0xffe2, 54],
  [0xffe3, 29], // Control_L
  [0xffe4, 97],
  [0xffe5, 58], // Caps_Lock
  [0xffe7, 125], // Meta_L
  [0xffe8, 126],
  [0xffe9, 56], // Alt_L
  [0xffea, 100],
  [0xffeb, 125], // Super_L
  [0xffec, 126],
  [0xfe03, 100], // ISO_Level3_Shift
  [0xffff, 111], // Delete
];

const positions: ReadonlyMap<number, KeyPosition> = makePositions();

function makePositions(): Map<number, KeyPosition> {
  const map = new Map<number, KeyPosition>();
  for (const [first, plain, shifted] of ROWS) {
    for (let i = 0; i < plain.length; i++) {
      map.set(plain.charCodeAt(i), { evdev: first + i, shift: false });
      map.set(shifted.charCodeAt(i), { evdev: first + i, shift: true });
    }
  }
  for (const [keysym, evdev] of NAMED) map.set(keysym, { evdev, shift: undefined });
  // F1–F10 are in one row of codes; F11, F12 were added to the keyboard later
  for (let i = 0; i < 10; i++) map.set(0xffbe + i, { evdev: 59 + i, shift: undefined });
  map.set(0xffc8, { evdev: 87, shift: undefined });
  map.set(0xffc9, { evdev: 88, shift: undefined });
  for (let i = 0; i < 12; i++) map.set(0xffca + i, { evdev: 183 + i, shift: undefined });
  return map;
}

/**
 * Finds an X11 keysym on a US keyboard (`en-us`), undefined when it has no key there.
 * Keysyms of the form 0x01000000 | code point stand for that character.
 */
export function keysymToKey(keysym: number): KeyPosition | undefined {
  const direct = positions.get(keysym);
  if (direct !== undefined) return direct;
  if (keysym >= 0x0100_0020 && keysym <= 0x0100_00ff) return positions.get(keysym - 0x0100_0000);
  return undefined;
}
