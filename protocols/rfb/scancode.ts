// Codes of the QEMU extended key event: XT set 1, with 0x80 added for the E0 prefix, to Linux evdev numbers.
// 0x01–0x53 and 0x56–0x58 are evdev numbers already: evdev grew out of that keyboard.

const FIRST_SAME_END = 0x53;

/** Everything else that a keyboard of ours can have: [scancode, evdev]. */
const EXCEPTIONS: readonly (readonly [number, number])[] = [
  [0x54, 99], // SysRq as the key alone sends it with Alt
  [0x55, 186], // F16
  [0x56, 86],
  [0x57, 87],
  [0x58, 88],
  [0x59, 117], // keypad =
  [0x5a, 190], // F20
  [0x5c, 95], // keypad comma, Japanese
  [0x5d, 183], // F13
  [0x5e, 184],
  [0x5f, 185],
  [0x64, 134], // open
  [0x65, 135], // paste
  [0x6d, 193], // F23
  [0x6f, 194], // F24
  [0x70, 93], // katakana/hiragana
  [0x71, 123], // hanja
  [0x72, 122], // hangul
  [0x73, 89], // ro
  [0x74, 191], // F21
  [0x76, 85], // zenkaku/hankaku
  [0x77, 91], // hiragana
  [0x78, 90], // katakana
  [0x79, 92], // henkan
  [0x7b, 94], // muhenkan
  [0x7d, 124], // yen
  [0x7e, 121], // keypad comma
  [0x83, 187], // F17
  [0x84, 189], // F19
  [0x85, 129], // again
  [0x86, 130], // props
  [0x87, 131], // undo
  [0x90, 165], // previous song
  [0x99, 163], // next song
  [0x9c, 96], // keypad enter
  [0x9d, 97], // right control
  [0xa0, 113], // mute
  [0xa1, 140], // calculator
  [0xa2, 164], // play/pause
  [0xa4, 166], // stop
  [0xa5, 205], // suspend
  [0xae, 114], // volume down
  [0xb0, 115], // volume up
  [0xb2, 172], // home page
  [0xb5, 98], // keypad /
  [0xb7, 99], // print screen
  [0xb8, 100], // right alt
  [0xbc, 137], // cut
  [0xc1, 136], // find
  [0xc6, 119], // pause
  [0xc7, 102], // home
  [0xc8, 103], // up
  [0xc9, 104], // page up
  [0xcb, 105], // left
  [0xcd, 106], // right
  [0xcf, 107], // end
  [0xd0, 108], // down
  [0xd1, 109], // page down
  [0xd2, 110], // insert
  [0xd3, 111], // delete
  [0xdb, 125], // left meta
  [0xdc, 126], // right meta
  [0xdd, 127], // compose
  [0xde, 116], // power
  [0xdf, 142], // sleep
  [0xe3, 143], // wake up
  [0xe5, 217], // search
  [0xe6, 156], // bookmarks
  [0xe7, 173], // refresh
  [0xe8, 128], // stop
  [0xe9, 159], // forward
  [0xea, 158], // back
  [0xeb, 157], // computer
  [0xec, 155], // mail
  [0xed, 226], // media
  [0xf5, 138], // help
  [0xf6, 179], // keypad (
  [0xf7, 188], // F18
  [0xf8, 133], // copy
  [0xf9, 192], // F22
  [0xfb, 180], // keypad )
  [0xfd, 162], // eject
];

const table: Uint16Array = makeTable();

function makeTable(): Uint16Array {
  const codes = new Uint16Array(256);
  for (let code = 1; code <= FIRST_SAME_END; code++) codes[code] = code;
  for (const [scancode, evdev] of EXCEPTIONS) codes[scancode] = evdev;
  return codes;
}

/** The evdev code of a scancode from the wire, or undefined: 0, above 0xff or no key. Then the keysym decides. */
export function scancodeToEvdev(scancode: number): number | undefined {
  // The bound comes first: a client may send any 32 bits
  if (!Number.isInteger(scancode) || scancode <= 0 || scancode > 0xff) return undefined;
  return table[scancode] || undefined;
}
