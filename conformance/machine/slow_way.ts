import { connect, createServer, type Server, type Socket } from 'node:net';

/** A TCP connection's way to a port of this host: what comes back is late, and can be lost. */
export class SlowWay implements AsyncDisposable {
  readonly port: number;
  readonly #server: Server;
  readonly #sockets: Set<Socket>;

  private constructor(server: Server, sockets: Set<Socket>) {
    this.#server = server;
    this.#sockets = sockets;
    this.port = (server.address() as { port: number }).port;
  }

  /** Bytes from `port` arrive `answersLateMs` after they were sent; those to it at once. */
  static async open(port: number, answersLateMs: number): Promise<SlowWay> {
    const sockets = new Set<Socket>();
    const server = createServer((near) => {
      const far = connect(port, '127.0.0.1');
      for (const socket of [near, far]) {
        sockets.add(socket);
        socket.on('error', () => {}); // it closes, too
        socket.on('close', () => sockets.delete(socket));
      }
      near.pipe(far);
      far.on('data', (chunk: Buffer) => setTimeout(() => near.write(chunk), answersLateMs));
      far.on('close', () => setTimeout(() => near.end(), answersLateMs));
      near.on('close', () => far.destroy());
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    return new SlowWay(server, sockets);
  }

  /** Both ends see the connection fail; what is on its way is lost. */
  cut(): void {
    for (const socket of this.#sockets) socket.resetAndDestroy();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.cut();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}
