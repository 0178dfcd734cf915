import { type Duplex, duplexPair } from 'node:stream';
import test from 'ava';
import { SessionPool, type SessionPoolOptions } from '../../../services/nbd/mod.ts';
import { twoDisks } from './harness.ts';

/** Connects from an address; undefined where the pool does not let it in. Says nothing from then on. */
function connect(pool: SessionPool, address: string): Duplex | undefined {
  if (!pool.admits(address)) return undefined;
  const [near, far] = duplexPair();
  near.on('error', () => {}).resume();
  pool.add(far, address);
  return near;
}

function poolOf(options: SessionPoolOptions = {}): SessionPool {
  return new SessionPool(twoDisks().exports, { ...options, limits: { handshakes: 8, handshakeMs: 60_000 } });
}

test('H14: one address that begins handshakes and says nothing does not keep another one out', async (t) => {
  for (const shared of [100, 1]) {
    const pool = poolOf({ shared });
    const silent: Duplex[] = [];
    for (let stream = connect(pool, '192.0.2.1'); stream !== undefined; stream = connect(pool, '192.0.2.1')) {
      silent.push(stream);
      t.true(silent.length <= 8, 'the address itself is bounded');
      if (silent.length > 8) break;
    }
    t.is(silent.length, 8);
    for (let others = 0; others < 4; others++) {
      t.truthy(connect(pool, '192.0.2.2'), `shared by ${shared}: another address, connection ${others + 1}`);
      await new Promise((resolve) => setImmediate(resolve));
    }
    t.is(connect(pool, '192.0.2.2'), undefined, 'both have their half');
    t.is(connect(pool, '192.0.2.1'), undefined);
    t.true(pool.connections <= 8, `${pool.connections} connections`);
    await pool.close();
  }
});
