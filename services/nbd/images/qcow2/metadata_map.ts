/** Where metadata lies in the file: nothing of a guest may be read from there or written to it. */
export class MetadataMap {
  readonly #ranges: { name: string; from: number; to: number }[] = [];
  /** Clusters of L2 tables and refcount blocks as found at open, sorted */
  #found: Float64Array = new Float64Array(0);
  readonly #added = new Map<number, string>();
  readonly #removed = new Set<number>();

  /** Marks `bytes` from `from` on. Gives the name of what it overlaps, or undefined. */
  addRange(name: string, from: number, bytes: number): string | undefined {
    if (bytes === 0) return undefined;
    const overlapped = this.#ranges.find((range) => from < range.to && range.from < from + bytes)?.name;
    this.#ranges.push({ name, from, to: from + bytes });
    return overlapped;
  }

  removeRange(name: string): void {
    const index = this.#ranges.findIndex((range) => range.name === name);
    if (index !== -1) this.#ranges.splice(index, 1);
  }

  /** Takes the clusters found at open. Gives what is wrong with them, or undefined. */
  setFound(hosts: Float64Array, clusterBytes: number): string | undefined {
    this.#found = hosts.sort();
    let damage: string | undefined;
    for (let index = 0; index < hosts.length; index++) {
      const host = hosts[index]!;
      if (index > 0 && hosts[index - 1] === host) damage ??= `two tables at ${host}`;
      const range = this.rangeAt(host, clusterBytes);
      if (range !== undefined) damage ??= `a table at ${host} in the ${range}`;
    }
    return damage;
  }

  addCluster(host: number, name: string): void {
    this.#removed.delete(host);
    this.#added.set(host, name);
  }

  removeCluster(host: number): void {
    if (!this.#added.delete(host)) this.#removed.add(host);
  }

  /** The fixed area that [host, host + bytes) touches */
  rangeAt(host: number, bytes: number): string | undefined {
    for (const range of this.#ranges) if (host < range.to && range.from < host + bytes) return range.name;
    return undefined;
  }

  /** The metadata in the cluster at `host` */
  at(host: number, clusterBytes: number): string | undefined {
    const range = this.rangeAt(host, clusterBytes);
    if (range !== undefined) return range;
    const added = this.#added.get(host);
    if (added !== undefined) return added;
    return this.#finds(host) && !this.#removed.has(host) ? 'L2 table or refcount block' : undefined;
  }

  #finds(host: number): boolean {
    let low = 0;
    let high = this.#found.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#found[middle]! < host) low = middle + 1;
      else high = middle;
    }
    return this.#found[low] === host;
  }
}
