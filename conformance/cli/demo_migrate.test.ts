import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';
import test from 'ava';

const MAIN = fileURLToPath(new URL('../../cli/main.ts', import.meta.url));

for (const flags of [[], ['--embedded']]) {
  test.serial(
    `caisson demo migrate ${flags.join(' ')} moves a guest that writes 200 MiB/s, and its checksum holds`,
    async (t) => {
      const folder = await mkdtemp(join(tmpdir(), 'caisson-demo-test-'));
      t.teardown(() => rm(folder, { recursive: true, force: true }));
      const child = spawn(process.execPath, [MAIN, 'demo', 'migrate', ...flags], {
        stdio: ['ignore', 'ignore', 'pipe'],
        env: { ...process.env, XDG_RUNTIME_DIR: folder },
      });
      const timer = setTimeout(() => child.kill('SIGTERM'), 300_000);
      const [said, [code]] = await Promise.all([text(child.stderr), once(child, 'exit')]);
      clearTimeout(timer);
      t.log(said);
      t.is(code, 0);
      t.regex(said, /Migrated in .*: \d+ rounds, .* sent .*, downtime \d+ ms/);
      t.regex(said, /checksum: OK .* bad-pages=0 bad-words=0 online-bad=0/);
    },
  );
}
