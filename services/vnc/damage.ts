import type { Area } from '../../protocols/rfb/mod.ts';

/** Side of the squares that damage is kept in, in `pixels`: ZRLE's tile, so one mark is one tile */
export const TILE = 64;

/** Which squares of a framebuffer one viewer has not seen yet. */
export class DamageMap {
  #width = 0;
  #height = 0;
  #columns = 0;
  #rows = 0;
  #marks = new Uint8Array(0);
  #count = 0;

  /** Everything is damaged afterwards. */
  resize(width: number, height: number): void {
    this.#width = width;
    this.#height = height;
    this.#columns = Math.ceil(width / TILE);
    this.#rows = Math.ceil(height / TILE);
    this.#marks = new Uint8Array(this.#columns * this.#rows);
    this.addAll();
  }

  get empty(): boolean {
    return this.#count === 0;
  }

  addAll(): void {
    this.#marks.fill(1);
    this.#count = this.#marks.length;
  }

  /** Clips to the framebuffer. */
  add(area: Area): void {
    this.#each(area, (index) => {
      if (this.#marks[index] === 0) {
        this.#marks[index] = 1;
        this.#count++;
      }
    });
  }

  /** True when a square that touches `region` is damaged. */
  touches(region: Area): boolean {
    if (this.#count === 0) return false;
    let found = false;
    this.#each(region, (index) => {
      if (this.#marks[index] !== 0) found = true;
    });
    return found;
  }

  /**
   * Takes the damage that touches `region`, as few rectangles made of whole squares (clipped at the right and
   * bottom edge), each of at most `maxPixels` where that is possible.
   */
  take(region: Area, maxPixels: number): Area[] {
    if (this.#count === 0) return [];
    const taken = new Uint8Array(this.#marks.length);
    this.#each(region, (index) => {
      if (this.#marks[index] !== 0) {
        this.#marks[index] = 0;
        this.#count--;
        taken[index] = 1;
      }
    });
    return this.#merge(taken, maxPixels);
  }

  #merge(marks: Uint8Array, maxPixels: number): Area[] {
    const areas: Area[] = [];
    for (let row = 0; row < this.#rows; row++) {
      for (let column = 0; column < this.#columns; column++) {
        if (marks[row * this.#columns + column] === 0) continue;
        let end = column + 1;
        while (end < this.#columns && marks[row * this.#columns + end] !== 0) end++;
        const squaresWide = end - column;
        let bottom = row + 1;
        const maxRows = Math.max(1, Math.floor(maxPixels / (squaresWide * TILE * TILE)));
        while (
          bottom < this.#rows &&
          bottom - row < maxRows &&
          this.#allMarked(marks, bottom * this.#columns + column, squaresWide)
        ) {
          bottom++;
        }
        for (let r = row; r < bottom; r++) marks.fill(0, r * this.#columns + column, r * this.#columns + end);
        const x = column * TILE;
        const y = row * TILE;
        areas.push({
          x,
          y,
          width: Math.min(end * TILE, this.#width) - x,
          height: Math.min(bottom * TILE, this.#height) - y,
        });
        column = end - 1;
      }
    }
    return areas;
  }

  #allMarked(marks: Uint8Array, start: number, count: number): boolean {
    for (let i = start; i < start + count; i++) if (marks[i] === 0) return false;
    return true;
  }

  #each(area: Area, visit: (index: number) => void): void {
    const left = Math.max(0, area.x);
    const top = Math.max(0, area.y);
    const right = Math.min(this.#width, area.x + area.width);
    const bottom = Math.min(this.#height, area.y + area.height);
    if (!(left < right && top < bottom)) return;
    const lastColumn = Math.floor((right - 1) / TILE);
    const lastRow = Math.floor((bottom - 1) / TILE);
    for (let row = Math.floor(top / TILE); row <= lastRow; row++) {
      for (let column = Math.floor(left / TILE); column <= lastColumn; column++) visit(row * this.#columns + column);
    }
  }
}
