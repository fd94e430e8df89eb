/**
 * Acquires a key, with a wait of any length, over restarts of the server.
 *
 * One Idempotency-Key covers the whole wait. Before the wait of a request ends, a repeat takes its
 * place in the wait queue, so the order of the waiters is kept; and an answer that was lost is
 * repeated, so no lease is left behind. The lease counts from the sending of the answered request.
 */

import { Backoff, now, settlesWithin, sleep } from "./clock.js";
import { KeypegError, KeysGone, LeaseEnded, NoKeyAvailable, Refused, Unauthorized, Unreachable, WaitEnded } from "./errors.js";
import type { Http } from "./http.js";
import type { components } from "./schema.js";

/** The body of a grant. */
export type Grant = components["schemas"]["Grant"];

/** A grant, and when the request that it answers was sent, by `now`. */
export interface SentGrant {
  readonly grant: Grant;
  readonly sentAt: number;
}

/** The longest wait of one request in seconds: below 300 s, after which `fetch` of Node gives up. */
export const REQUEST_WAIT_MAX = 240;
/** The part of the wait of a request after which a repeat takes its place. */
const REPEAT_AT = 0.8;
/** How long the answer of the last request may be late before its outcome is asked for. */
const GRACE = 50;
/** How long the outcome of an attempt is asked for after the wait. */
const SETTLE = 5_000;

/** What an acquire needs; times in seconds. */
export interface AcquireOptions {
  readonly pool: string;
  readonly ttl: number | undefined;
  readonly holder: string | undefined;
  readonly wait: number;
  readonly signal: AbortSignal | undefined;
  readonly onRetry: ((error: KeypegError) => void) | undefined;
  /** The longest wait of one request; tests shorten it. */
  readonly requestWait: number;
}

/** A request that runs. */
interface Attempt {
  readonly answer: Promise<SentGrant>;
  /** Its grant, once it has arrived. */
  granted: SentGrant | undefined;
  drop(): Promise<void>;
}

/** One acquire: its requests share an Idempotency-Key and a body. */
export class Acquire {
  readonly #http: Http;
  readonly #options: AcquireOptions;
  readonly #body: components["schemas"]["AcquireRequest"] = {};
  #key = newKey();
  #deadline = 0;
  #attempts = 0;
  /** Whether a request may have a grant whose answer did not arrive. */
  #isUnsettled = false;

  constructor(http: Http, options: AcquireOptions) {
    this.#http = http;
    this.#options = options;
    if (options.ttl !== undefined) this.#body.ttl_seconds = options.ttl;
    if (options.holder !== undefined) this.#body.holder = options.holder;
  }

  /**
   * Returns a grant; throws the refusal, `WaitEnded` when the wait has ended, or the reason of the
   * signal. After an abort the grant that may exist is released.
   */
  async run(): Promise<SentGrant> {
    this.#deadline = now() + this.#options.wait * 1_000;
    try {
      return await this.#repeat();
    } catch (error) {
      if (this.#isUnsettled) await this.#abandon();
      throw error;
    }
  }

  async #repeat(): Promise<SentGrant> {
    const backoff = new Backoff(100, 5_000);
    let wasAccepted = false;
    for (;;) {
      this.#options.signal?.throwIfAborted();
      const token = await this.#http.token();
      let failure: KeypegError;
      try {
        return await this.#waitOnce();
      } catch (error) {
        if (!(error instanceof KeypegError) || this.#options.signal?.aborted) throw error;
        failure = error;
      }
      if (failure instanceof NoKeyAvailable && failure.isTemporary) {
        wasAccepted = true;
        backoff.reset();
      } else if (failure instanceof LeaseEnded || failure instanceof KeysGone) {
        // The answer was lost, and its lease has ended since.
        this.#key = newKey();
      } else if (failure instanceof Unauthorized) {
        if ((await this.#http.token()) !== token) continue;
        // A token that was never accepted is a mistake; another one is being replaced.
        if (!wasAccepted) throw failure;
      } else if (!failure.isTemporary) {
        throw failure;
      }
      const advice = failure instanceof Refused ? (failure.retryAfter ?? 0) * 1_000 : 0;
      const pause = backoff.pause(advice);
      if (now() + pause >= this.#deadline) return await this.#end(failure);
      if (!(failure instanceof NoKeyAvailable)) this.#options.onRetry?.(failure);
      await sleep(pause, this.#options.signal);
    }
  }

  /** Ends the wait: returns the grant whose answer was lost, if there is one, or throws. */
  async #end(failure: KeypegError): Promise<SentGrant> {
    let last = failure;
    if (this.#isUnsettled) {
      try {
        return await this.#settle();
      } catch (error) {
        if (error instanceof NoKeyAvailable) last = error;
      }
      this.#isUnsettled = false;
    }
    throw this.#options.wait > 0 ? new WaitEnded(this.#options.wait, last) : last;
  }

  /** Waits in the queue, and keeps the place there with repeats, until a request fails or is granted. */
  async #waitOnce(): Promise<SentGrant> {
    let waiting = this.#start();
    try {
      for (;;) {
        const remaining = (this.#deadline - now()) / 1_000;
        const wait = Math.min(this.#options.requestWait, Math.max(remaining, 0));
        const isLast = wait >= remaining;
        let pause = wait * REPEAT_AT * 1_000;
        // A call that does not wait is limited by its own timeout.
        if (isLast) pause = this.#options.wait > 0 ? remaining * 1_000 + GRACE : this.#http.timeout * 2;
        if (await settlesWithin(pause, waiting.answer)) return await waiting.answer;
        const repeat = this.#start();
        const first = waiting;
        waiting = repeat;
        const isLate = !(await settlesWithin(isLast ? SETTLE : this.#http.timeout * 2, first.answer, repeat.answer));
        // An error of the first is usual: the server gives its place to the repeat.
        if (first.granted !== undefined) return first.granted;
        await first.drop();
        if (isLate) throw new Unreachable("the server did not answer in time", true);
        if (await settlesWithin(isLast ? SETTLE : 0, repeat.answer)) return await repeat.answer;
        if (isLast) throw new Unreachable("the server did not answer in time", true);
      }
    } finally {
      await waiting.drop();
    }
  }

  #start(): Attempt {
    const remaining = Math.max(this.#deadline - now(), 0) / 1_000;
    const dropped = new AbortController();
    const from = this.#options.signal;
    const onAbort = (): void => dropped.abort(from?.reason);
    if (from?.aborted) onAbort();
    from?.addEventListener("abort", onAbort);
    const wait = Math.ceil(Math.min(this.#options.requestWait, remaining));
    const answer = this.#send(wait, dropped.signal).finally(() => from?.removeEventListener("abort", onAbort));
    const attempt: Attempt = {
      answer,
      granted: undefined,
      // The server gives the place of a request that is dropped to its repeat.
      drop: () => {
        dropped.abort();
        return settled;
      },
    };
    const settled = answer.then(
      (sent) => void (attempt.granted = sent),
      () => undefined,
    );
    return attempt;
  }

  async #send(wait: number, signal: AbortSignal): Promise<SentGrant> {
    const sentAt = now();
    const wasUnsettled = this.#isUnsettled;
    this.#isUnsettled = true;
    const attempt = ++this.#attempts;
    const headers: Record<string, string> = { "idempotency-key": this.#key };
    // The header, not the body: a repeat with another wait has the same body.
    if (wait > 0) headers["prefer"] = `wait=${wait}`;
    try {
      const options = { path: { pool: this.#options.pool }, headers, body: this.#body, wait, signal };
      return { grant: await this.#http.call("post", "/v1/pools/{pool}/leases", options), sentAt };
    } catch (error) {
      // Only a defect leaves the outcome of a refusal open. The place of an earlier attempt belongs to
      // the last one, so the refusal of the last one settles all.
      if (attempt === this.#attempts) {
        if (error instanceof Refused) this.#isUnsettled = error.problem.outcome === "unknown";
        else if (error instanceof Unreachable && !error.wasSent) this.#isUnsettled = wasUnsettled;
        else if (error instanceof KeypegError && !(error instanceof Unreachable) && !error.isTemporary) this.#isUnsettled = wasUnsettled;
      }
      throw error;
    }
  }

  /**
   * Asks for the outcome for a while: a repeat that does not wait gets the grant that exists, or takes
   * the place in the wait queue and leaves it.
   */
  async #settle(): Promise<SentGrant> {
    const late = new AbortController();
    const timer = setTimeout(() => late.abort(new Unreachable("the server did not answer in time", true)), SETTLE);
    try {
      for (;;) {
        try {
          return await this.#send(0, late.signal);
        } catch (error) {
          if (!(error instanceof KeypegError) || !error.isTemporary || error instanceof NoKeyAvailable) throw error;
        }
        await sleep(100, late.signal);
      }
    } finally {
      clearTimeout(timer);
    }
  }

  /** Releases the grant of an answer that did not arrive, if there is one. */
  async #abandon(): Promise<void> {
    try {
      const { grant } = await this.#settle();
      const path = { pool: this.#options.pool, lease: grant.id };
      await this.#http.call("post", "/v1/pools/{pool}/leases/{lease}/release", { path, isRepeatable: true });
    } catch {
      // The lease, if there is one, ends by time.
    }
    this.#isUnsettled = false;
  }
}

/** Returns a unique Idempotency-Key. Unique is enough: it is no secret. */
function newKey(): string {
  const bytes = new Uint8Array(16);
  // Node 18 has no global `crypto`.
  if (typeof globalThis.crypto?.getRandomValues === "function") globalThis.crypto.getRandomValues(bytes);
  else for (let index = 0; index < bytes.length; index++) bytes[index] = Math.floor(Math.random() * 256);
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
