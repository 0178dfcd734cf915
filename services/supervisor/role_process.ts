// Main program of a role's process. What to run comes as JSON on standard input, from the supervisor; the links are
// inherited descriptors.
import { writeSync } from 'node:fs';
import { Socket, type SocketConstructorOpts } from 'node:net';
import process from 'node:process';
import { text } from 'node:stream/consumers';
import type { RoleLinks } from '../shared/role.ts';
import { loadRole, type RoleModule } from './role_table.ts';

export interface RoleStart {
  readonly role: string;
  readonly module: RoleModule;
  /** Descriptor of each link */
  readonly links: Readonly<Record<string, number>>;
  readonly options: unknown;
}

/** After the control link has closed, for what the role still has to write down */
const GRACE_MS = 3000;

// The terminal sends these to the whole group; when to end is the supervisor's decision.
process.on('SIGINT', () => {});
process.on('SIGHUP', () => {});

const start = JSON.parse(await text(process.stdin)) as RoleStart;
process.title = `caisson-${start.role}`;
const main = await loadRole(start.module);
const links: Record<string, Socket> = {};
for (const [name, fd] of Object.entries(start.links)) {
  // Nothing is read before the role listens: it may go on with the handle in its own way.
  links[name] = new Socket({ fd, readable: true, writable: true, manualStart: true } as SocketConstructorOpts);
  links[name].on('error', () => {}); // it closes too, and that is what the role sees
}
// No role outlives its supervisor: the kernel closes this link even when the supervisor was killed.
links.control!.on('close', () => {
  setTimeout(() => process.exit(0), GRACE_MS).unref();
});
try {
  await main(links as unknown as RoleLinks, start.options);
} catch (error) {
  // An error with a code is about what the role was given; any other is our own and tells where it comes from.
  const coded = error instanceof Error && 'code' in error;
  writeSync(2, `${coded ? error.message : error instanceof Error ? error.stack : String(error)}\n`);
  process.exit(1);
}
process.exit(0);
