// All pools, read page by page. A server with many pools is read one page at a time in turns, so the
// work for server and browser has a bound whatever the number of pools.
import { useEffect, useRef, useState } from "preact/hooks";
import { call, type Pool } from "./api";

interface Page {
  pools: Pool[];
  next_cursor: string | null;
}

/** The most pools of a page, and in the memory of the page. */
const PAGE = 1_000;
export const POOLS_MAX = 20_000;
const EVERY_MS = 2_000;
const EVERY_MAX_MS = 15_000;

export interface AllPools {
  pools: Map<string, Pool>;
  /** Whether each pool was read once. */
  complete: boolean;
  /** Whether the server has more pools than are shown. */
  truncated: boolean;
  error: unknown;
  refresh: () => void;
}

export function usePools(): AllPools {
  const [state, setState] = useState<Omit<AllPools, "refresh">>({ pools: new Map(), complete: false, truncated: false, error: null });
  const wake = useRef(() => {});
  useEffect(() => {
    const abort = new AbortController();
    let pools = new Map<string, Pool>();
    let seen = new Set<string>();
    let cursor: string | null = null;
    let complete = false;
    let truncated = false;
    let timer: ReturnType<typeof setTimeout> | undefined;
    let failures = 0;
    const readPage = async () => {
      const query: string = cursor === null ? "" : `&cursor=${encodeURIComponent(cursor)}`;
      const page: Page = await call<Page>("GET", `/v1/pools?limit=${PAGE}${query}`, { signal: abort.signal });
      pools = new Map(pools);
      for (const pool of page.pools) {
        pools.set(pool.pool, pool);
        seen.add(pool.pool);
      }
      cursor = page.next_cursor;
      truncated = cursor !== null && seen.size >= POOLS_MAX;
      if (cursor === null || truncated) {
        // A pool that a whole listing did not have is deleted.
        for (const name of pools.keys()) if (!seen.has(name)) pools.delete(name);
        seen = new Set();
        cursor = null;
        complete = true;
      }
    };
    const run = async () => {
      clearTimeout(timer);
      if (document.hidden && complete) return;
      let error: unknown = null;
      try {
        await readPage();
        failures = 0;
      } catch (failure) {
        error = failure;
        failures += 1;
      }
      if (abort.signal.aborted) return;
      setState({ pools, complete, truncated, error });
      const pause = complete || error !== null ? Math.min(EVERY_MS * 2 ** Math.min(failures, 3), EVERY_MAX_MS) : 0;
      timer = setTimeout(() => void run(), pause);
    };
    const shown = () => {
      if (!document.hidden) void run();
    };
    wake.current = () => void run();
    document.addEventListener("visibilitychange", shown);
    void run();
    return () => {
      abort.abort();
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", shown);
    };
  }, []);
  return { ...state, refresh: () => wake.current() };
}

export type SortKey = "pool" | "available" | "leased" | "resting" | "quarantined" | "waiting" | "next_return_at";

export interface Order {
  key: SortKey;
  descending: boolean;
}

/** Returns the pools whose names contain a text, in order. */
export function arranged(pools: Map<string, Pool>, filter: string, { key, descending }: Order): Pool[] {
  const text = filter.trim().toLowerCase();
  const found = [...pools.values()].filter((pool) => pool.pool.includes(text));
  const sign = descending ? -1 : 1;
  return found.sort((one, other) => {
    const [a, b] = [one[key], other[key]];
    if (a === b || (a == null && b == null)) return one.pool < other.pool ? -1 : 1;
    if (a == null) return 1;
    if (b == null) return -1;
    return a < b ? -sign : sign;
  });
}
