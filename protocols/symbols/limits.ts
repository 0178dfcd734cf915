/** Of all formats; Debian's kernel has 120 000 */
export const MAX_SYMBOLS = 1_000_000;
/** Linux: KSYM_NAME_LEN 512; C++ names are longer, and cut for people anyway */
export const MAX_SYMBOL_NAME_BYTES = 4096;
/** Of all names of one file together, in characters: many symbols may share one name of the file */
export const MAX_SYMBOL_TEXT = 64 << 20;
/** Bytes of packed names that are unpacked to find where a table begins; a kernel's whole table has one or two millions */
export const MAX_UNPACKED_BYTES = 32 << 20;
/** An ELF with debug information, in `bytes` */
export const MAX_SYMBOL_FILE_BYTES = 1 << 30;
/** A line of System.map: address, kind, name, and a module in brackets */
export const MAX_LINE_BYTES = MAX_SYMBOL_NAME_BYTES + 128;
