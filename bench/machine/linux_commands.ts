import { TARGETS, type Target } from './targets.ts';

/** One command of busybox inside Linux. */
export interface LinuxCommand {
  readonly name: string;
  readonly target: Target;
  /** Shell; prints one short line that depends on all of the work */
  readonly script: (percent: number) => string;
}

const scaled = (count: number, percent: number): number => Math.max(1, Math.ceil((count * percent) / 100));

/** What the commands work on: executable code, which every guest has the same, and lines of hexadecimal digits. */
export function prepareScript(percent: number): string {
  const bytes = scaled(4 << 20, percent);
  return (
    `for i in 1 2 3 4; do cat /bin/busybox; done | head -c ${bytes} >/tmp/data; ` +
    `head -c ${scaled(40_000, percent)} /bin/busybox | hexdump -v -e '4/1 "%02x" "\\n"' >/tmp/lines; ` +
    'wc -c </tmp/data'
  );
}

export const LINUX_COMMANDS: readonly LinuxCommand[] = [
  {
    name: 'sha256sum',
    target: TARGETS.command,
    script: () => 'for i in 1 2 3 4 5; do sha256sum /tmp/data; done | tail -n 1 | cut -c 1-32',
  },
  {
    name: 'gzip',
    target: TARGETS.command,
    script: (percent) => `head -c ${scaled(1 << 20, percent)} /tmp/data | gzip -c | wc -c`,
  },
  {
    name: 'bzip2',
    target: TARGETS.command,
    script: (percent) => `head -c ${scaled(400_000, percent)} /tmp/data | bzip2 -c | wc -c`,
  },
  {
    name: 'awk, floating point',
    target: TARGETS.command,
    script: (percent) =>
      `awk 'BEGIN { for (i = 1; i < ${scaled(80_000, percent)}; i++) s += 1.5 * i / (i + 1.25) - s / 3; ` +
      `printf "%.6f", s }'`,
  },
  {
    name: 'shell loop',
    target: TARGETS.command,
    script: (percent) => `i=0; while [ $i -lt ${scaled(30_000, percent)} ]; do i=$((i + 1)); done; echo $i`,
  },
  {
    name: '200 × fork, exec',
    target: TARGETS.forks,
    script: (percent) => `i=0; while [ $i -lt ${scaled(200, percent)} ]; do /bin/true; i=$((i + 1)); done; echo $i`,
  },
  { name: 'sort | uniq', target: TARGETS.command, script: () => 'sort /tmp/lines | uniq | wc -l' },
  {
    name: 'dd',
    target: TARGETS.command,
    script: (percent) =>
      `dd if=/dev/zero of=/dev/null bs=512 count=${scaled(10_000, percent)} 2>/dev/null; ` +
      `dd if=/dev/zero of=/tmp/out bs=64k count=${scaled(100, percent)} 2>/dev/null; wc -c </tmp/out; rm /tmp/out`,
  },
];

/** Work for each of `harts` harts at once; prints nothing that depends on which ends first. */
export function parallelScript(harts: number): string {
  const one = 'for i in 1 2 3 4 5; do sha256sum /tmp/data; done | tail -n 1 | cut -c 1-16';
  return `${Array.from({ length: harts }, () => `{ ${one}; } &`).join(' ')} wait`;
}
