import { Cursor, Writer } from '../bytes/mod.ts';
import { INFO } from './constants.ts';
import type { BlockSizes, ExportSummary, MetaContext } from './export.ts';
import { MAX_OPTION_REPLY_BYTES, MAX_STRING_BYTES } from './limits.ts';
import { boundedText } from './option.ts';

/** Data of one NBD_REP_INFO */
export type Information =
  | { readonly type: typeof INFO.EXPORT; readonly sizeBytes: bigint; readonly flags: number }
  | { readonly type: typeof INFO.NAME; readonly name: string }
  | { readonly type: typeof INFO.DESCRIPTION; readonly description: string }
  | { readonly type: typeof INFO.BLOCK_SIZE; readonly blockSizes: BlockSizes }
  /** An information type that we do not know: to be ignored */
  | { readonly type: 'unknown'; readonly number: number };

export function encodeInformation(information: Exclude<Information, { type: 'unknown' }>): Uint8Array<ArrayBuffer> {
  const writer = new Writer(16).u16(information.type);
  switch (information.type) {
    case INFO.EXPORT:
      return writer.u64(information.sizeBytes).u16(information.flags).finish();
    case INFO.NAME:
      return writer.bytes(boundedText(information.name)).finish();
    case INFO.DESCRIPTION:
      return writer.bytes(boundedText(information.description)).finish();
    case INFO.BLOCK_SIZE: {
      const { minimum, preferred, maximum } = information.blockSizes;
      return writer.u32(minimum).u32(preferred).u32(maximum).finish();
    }
  }
}

export function decodeInformation(data: Uint8Array): Information {
  const cursor = new Cursor(data, 'NBD_REP_INFO');
  const type = cursor.u16('information type');
  let information: Information;
  if (type === INFO.EXPORT) {
    information = { type, sizeBytes: cursor.u64('size'), flags: cursor.u16('transmission flags') };
  } else if (type === INFO.NAME) {
    information = { type, name: cursor.utf8(cursor.remaining, MAX_STRING_BYTES, 'name') };
  } else if (type === INFO.DESCRIPTION) {
    information = { type, description: cursor.utf8(cursor.remaining, MAX_STRING_BYTES, 'description') };
  } else if (type === INFO.BLOCK_SIZE) {
    const blockSizes = {
      minimum: cursor.u32('minimum block size'),
      preferred: cursor.u32('preferred block size'),
      maximum: cursor.u32('maximum block size'),
    };
    information = { type, blockSizes };
  } else {
    cursor.rest();
    information = { type: 'unknown', number: type };
  }
  cursor.end();
  return information;
}

/** Data of one NBD_REP_SERVER */
export function encodeListedExport(summary: ExportSummary): Uint8Array<ArrayBuffer> {
  const name = boundedText(summary.name);
  const writer = new Writer(4 + name.length).u32(name.length).bytes(name);
  if (summary.description !== undefined) writer.bytes(boundedText(summary.description));
  return writer.finish();
}

export function decodeListedExport(data: Uint8Array): ExportSummary {
  const cursor = new Cursor(data, 'NBD_REP_SERVER');
  const name = cursor.utf8(cursor.u32('name length'), MAX_STRING_BYTES, 'name');
  if (cursor.remaining === 0) return { name };
  return { name, description: cursor.utf8(cursor.remaining, MAX_OPTION_REPLY_BYTES, 'details') };
}

/** Data of one NBD_REP_META_CONTEXT; in a LIST answer the id means nothing */
export function encodeMetaContext(context: MetaContext): Uint8Array<ArrayBuffer> {
  return new Writer(4 + context.name.length).u32(context.id).bytes(boundedText(context.name)).finish();
}

export function decodeMetaContext(data: Uint8Array): MetaContext {
  const cursor = new Cursor(data, 'NBD_REP_META_CONTEXT');
  const id = cursor.u32('context id');
  return { id, name: cursor.utf8(cursor.remaining, MAX_STRING_BYTES, 'context name') };
}
