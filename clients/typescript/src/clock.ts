/**
 * Time in milliseconds that never runs backwards and continues while the machine is suspended, and
 * pauses that a signal ends. The only file that reads the time.
 */

/** How much further the date must have moved than the timer, to count as a suspend. */
const SUSPEND_MIN = 1_000;

let suspended = 0;
let lastTimer = performance.now();
let lastDate = Date.now();

/**
 * Returns the time since an arbitrary start. The timer of JavaScript stands still while a machine is
 * suspended, so a jump of the date counts as a suspend: in doubt a lease ends here too early.
 */
export function now(): number {
  const timer = performance.now();
  const date = Date.now();
  const jump = date - lastDate - (timer - lastTimer);
  if (jump > SUSPEND_MIN) suspended += jump;
  lastTimer = timer;
  lastDate = date;
  return timer + suspended;
}

/** Resolves after the time; rejects with the reason of the signal if it is aborted before. */
export function sleep(milliseconds: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) {
      reject(signal.reason);
      return;
    }
    const onAbort = (): void => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", onAbort);
      resolve();
    }, Math.max(0, milliseconds));
    signal?.addEventListener("abort", onAbort, { once: true });
  });
}

/** Returns whether one of the promises settles within the time; never rejects. */
export async function settlesWithin(milliseconds: number, ...promises: Promise<unknown>[]): Promise<boolean> {
  const timer = new AbortController();
  const settled = promises.map((promise) =>
    promise.then(
      () => true,
      () => true,
    ),
  );
  const late = sleep(milliseconds, timer.signal).then(
    () => false,
    () => false,
  );
  try {
    return await Promise.race([...settled, late]);
  } finally {
    timer.abort();
  }
}

/**
 * Pauses between attempts: each is about twice as long as the one before, up to a maximum. They vary
 * at random, so that many clients of a server that restarts do not all come back at one instant.
 */
export class Backoff {
  readonly #first: number;
  readonly #longest: number;
  #next: number;

  constructor(first: number, longest: number) {
    this.#first = Math.min(first, longest);
    this.#longest = longest;
    this.#next = this.#first;
  }

  /** Returns the pause before the next attempt: at least the server's advice, up to 30 s. */
  pause(advice = 0): number {
    const pause = this.#next * (0.75 + Math.random() / 4);
    this.#next = Math.min(this.#next * 2, this.#longest);
    return Math.max(pause, Math.min(advice, 30_000));
  }

  /** Begins again with the first pause, after a success. */
  reset(): void {
    this.#next = this.#first;
  }
}
