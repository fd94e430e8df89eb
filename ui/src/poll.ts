// Reads something again and again while the page is visible, one request at a time. After a failure
// the last result stays, beside the error, and the next attempt comes later.
import { useEffect, useRef, useState } from "preact/hooks";

export interface Polled<T> {
  data: T | null;
  error: unknown;
  /** Reads again at once. */
  refresh: () => void;
}

const PAUSE_MAX_MS = 15_000;

/** `read` is called again when `key` changes. `read` returning `undefined` keeps the last result. */
export function usePoll<T>(key: string, everyMs: number, read: (signal: AbortSignal, last: T | null) => Promise<T>): Polled<T> {
  const [state, setState] = useState<{ key: string; data: T | null; error: unknown }>({ key, data: null, error: null });
  const latest = useRef(read);
  latest.current = read;
  const wake = useRef(() => {});
  useEffect(() => {
    const abort = new AbortController();
    let data: T | null = null;
    let timer: ReturnType<typeof setTimeout> | undefined;
    let failures = 0;
    let running = false;
    let again = false;
    const run = async () => {
      clearTimeout(timer);
      if (running) {
        again = true;
        return;
      }
      if (document.hidden && data !== null) return;
      running = true;
      let error: unknown = null;
      try {
        data = await latest.current(abort.signal, data);
        failures = 0;
      } catch (failure) {
        error = failure;
        failures += 1;
      }
      running = false;
      if (abort.signal.aborted) return;
      setState({ key, data, error });
      const pause = again ? 0 : Math.min(everyMs * 2 ** Math.min(failures, 4), Math.max(PAUSE_MAX_MS, everyMs));
      again = false;
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
  }, [key, everyMs]);
  // A result of another key is not shown.
  const current = state.key === key ? state : { data: null, error: null };
  return { data: current.data, error: current.error, refresh: () => wake.current() };
}

/** Renders again each `everyMs`, for countdowns. */
export function useTick(everyMs: number): void {
  const [, set] = useState(0);
  useEffect(() => {
    const timer = setInterval(() => set((value) => value + 1), everyMs);
    return () => clearInterval(timer);
  }, [everyMs]);
}
