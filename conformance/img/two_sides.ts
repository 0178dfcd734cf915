import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type ImgResult, runImg } from '../../test/fixtures/img_verb.ts';
import { run } from '../nbd/peers.ts';

/** Stands in a command line for the folder of whoever runs it */
export const HERE = '@';

/** Two folders with the same files in them: one for `caisson img`, one for qemu-img. Names are alike, of one length. */
export class TwoSides {
  readonly #root = mkdtempSync(join(tmpdir(), 'caisson-two-sides-'));
  #ours = 'a';

  constructor() {
    for (const name of ['a', 'b']) mkdirSync(join(this.#root, name));
  }

  get ours(): string {
    return join(this.#root, this.#ours);
  }

  get theirs(): string {
    return join(this.#root, this.#ours === 'a' ? 'b' : 'a');
  }

  /** What one has written, the other goes on with. */
  swap(): void {
    this.#ours = this.#ours === 'a' ? 'b' : 'a';
  }

  clear(): void {
    for (const folder of [this.ours, this.theirs]) {
      rmSync(folder, { recursive: true });
      mkdirSync(folder);
    }
  }

  remove(): void {
    rmSync(this.#root, { recursive: true, force: true });
  }

  /** `caisson img --qemu-img` in `folder`, in this process */
  async img(args: readonly string[], folder = this.ours): Promise<ImgResult> {
    return runImg(folder, '--qemu-img', ...placed(args, folder));
  }

  /** qemu-img, or another of QEMU's programs, in `folder` */
  async qemu(args: readonly string[], folder = this.theirs, program = 'qemu-img'): Promise<ImgResult> {
    const { status, stdout, stderr } = await run(program, placed(args, folder));
    return { status, out: stdout.replaceAll(folder, 'DIR'), said: stderr.replaceAll(folder, 'DIR') };
  }
}

function placed(args: readonly string[], folder: string): string[] {
  return args.map((arg) => arg.replaceAll(`${HERE}/`, `${folder}/`));
}
