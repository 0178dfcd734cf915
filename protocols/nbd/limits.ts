/** Names, descriptions, queries and error texts ("String encoding": at most 4096 bytes) */
export const MAX_STRING_BYTES = 4096;
/** Option data that we look into; LIST and SET_META_CONTEXT with a handful of long strings fit */
export const MAX_OPTION_BYTES = 16 * 1024;
/** Option data up to here is taken off the stream and answered; above, the session ends */
export const MAX_SKIPPED_OPTION_BYTES = 64 * 1024;
/** Options of one session, before what LIST adds for each export */
export const MAX_OPTIONS = 64;
/** Each listed export may be asked about this often */
export const OPTIONS_PER_LISTED_EXPORT = 4;
/** Information requests in one NBD_OPT_INFO or NBD_OPT_GO */
export const MAX_INFO_REQUESTS = 32;
/** Queries in one NBD_OPT_*_META_CONTEXT */
export const MAX_META_QUERIES = 32;
/** Payload of one request or reply, in `bytes` ("Block size constraints": the portable maximum) */
export const MAX_PAYLOAD_BYTES = 32 * 1024 * 1024;
/** A refused WRITE's payload up to here is skipped so that the session lives; above, it ends */
export const MAX_SKIPPED_PAYLOAD_BYTES = 64 * 1024 * 1024;
/** Extents in one block-status reply that we send */
export const MAX_SENT_EXTENTS = 8192;

// What a client accepts from a server.

/** One option reply, in `bytes` */
export const MAX_OPTION_REPLY_BYTES = 32 * 1024;
/** NBD_REP_INFO replies to one option */
export const MAX_INFO_REPLIES = 64;
/** NBD_REP_SERVER replies to one NBD_OPT_LIST */
export const MAX_LISTED_EXPORTS = 10_000;
/** Extents in one block-status chunk */
export const MAX_RECEIVED_EXTENTS = 1 << 20;
/** Chunks in one structured reply: 32 MiB in pieces of 512 bytes */
export const MAX_REPLY_CHUNKS = 1 << 16;
/** No server may claim a size from here up, in `bytes` */
export const MAX_EXPORT_BYTES = 1n << 63n;
