export { Channel, type ChannelOptions } from './channel.ts';
export { decodeMessagePack, encodeMessagePack, type PlainValue } from './messagepack.ts';
export { lockName, type NameLock } from './name_lock.ts';
export { QmpClient, type QmpClientEvent, QmpConnectionError } from './qmp_client.ts';
export type { RoleLinks, RoleMain, Rpc } from './role.ts';
export { RpcError, RpcPeer, type RpcPeerOptions } from './rpc.ts';
export { readSecret, SecretError, type SecretSource } from './secret.ts';
export { duplexPair, socketPair } from './stream_pair.ts';
export {
  type SecureStream,
  TlsClient,
  type TlsClientOptions,
  type TlsIdentity,
  TlsServer,
  type TlsServerOptions,
} from './tls.ts';
export {
  type PskCredentials,
  readPskFile,
  readTlsCredentials,
  readX509Folder,
  type TlsCredentials,
  TlsError,
  type X509Credentials,
} from './tls_credentials.ts';
export { listenOnPath } from './unix_listener.ts';
