export { Channel, type ChannelOptions } from './channel.ts';
export { decodeMessagePack, encodeMessagePack, type PlainValue } from './messagepack.ts';
export { QmpClient, type QmpClientEvent, QmpConnectionError } from './qmp_client.ts';
export type { RoleLinks, RoleMain, Rpc } from './role.ts';
export { RpcError, RpcPeer, type RpcPeerOptions } from './rpc.ts';
export { duplexPair, socketPair } from './stream_pair.ts';
