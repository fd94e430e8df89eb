/**
 * A lease that is held: its renewals, its keep-alives, its end and its release.
 *
 * The lease ends here no later than on the server, because its time counts from the sending of the
 * request. A renewal that is not answered is repeated on another connection long before the end; one
 * that is refused is repeated with growing pauses. At most four renewals are open at a time.
 */

import type { SentGrant } from "./acquire.js";
import { Backoff, now, sleep } from "./clock.js";
import { seconds, type Duration } from "./duration.js";
import { InvalidInput, KeypegError, LeaseEnded, LeaseLost, MaxHoldReached, Refused, UnknownKey, UnknownPool, type LeaseEnd } from "./errors.js";
import type { Followed, Followers } from "./follow.js";
import type { Http } from "./http.js";
import type { components } from "./schema.js";

/** The time between renewals while the events of the pool are not followed, in milliseconds. */
const CHECK_EVERY = 800;
/** The age at which a lease is worth an event stream; shorter leases only renew. */
const FOLLOW_AFTER = 2_000;
/** The number of renewals without an answer. */
const ATTEMPTS_MAX = 4;
/** The time for which a release is repeated, and the pause between its attempts. */
const RELEASE_PATIENCE = 10_000;
const RELEASE_PAUSE = 250;
/** The longest time before the first keep-alive; shorter leases send none. */
const KEEP_ALIVE_FIRST = 2_000;
const REASON_MAX = 256;

/** What happens to the key after a release. */
export interface ReleaseOptions {
  /** The key rests for this time: it is not lent. */
  rest?: Duration;
  /** The key is not lent until an operator releases it. */
  quarantine?: boolean;
  /** Why, for people; never a secret. */
  reason?: string;
}

/** What a lease keeps of its options; times in milliseconds, `ttl` in seconds. */
export interface HeldOptions {
  readonly ttl: number | undefined;
  readonly margin: number;
  readonly keepAlive: boolean;
}

/** The exclusive right to use one key. Made by `Client.lease`, ended by `await using` or `release`. */
export class Lease implements AsyncDisposable, Followed {
  readonly #http: Http;
  readonly #followers: Followers;
  readonly #grant: SentGrant["grant"];
  readonly #options: HeldOptions;
  readonly #grantedAt = now();
  readonly #ended = new AbortController();
  /** Ends the loops of this lease. */
  readonly #stopped = new AbortController();
  #length: number;
  /** When the lease ends, as far as an answer has confirmed it, by `now`. */
  #end: number;
  #nextAt: number;
  #lost: LeaseLost | undefined;
  #failure: readonly [LeaseEnd, string] = ["not_renewed", "the server did not answer"];
  #releasing: Promise<void> | undefined;
  #attempts = 0;
  #isWoken = false;
  #notify: () => void = () => undefined;
  /** Called once when the lease has ended, by a loss or by its release. */
  onEnd: () => void = () => undefined;

  constructor(http: Http, followers: Followers, sent: SentGrant, options: HeldOptions) {
    this.#http = http;
    this.#followers = followers;
    this.#grant = sent.grant;
    this.#options = options;
    this.#length = (sent.grant.waited_seconds + sent.grant.expires_in_seconds) * 1_000;
    this.#end = sent.sentAt + this.#length;
    this.#nextAt = this.#grantedAt + Math.min(CHECK_EVERY, this.#length / 2);
    this.#renew().catch(() => this.lose("not_renewed", "a defect of the client"));
    if (options.keepAlive && sent.grant.key_expires_at !== null) this.#keepAlive().catch(() => undefined);
  }

  /** The value of the key. Throws `LeaseLost` after a loss, so that a lost key is not used. */
  get key(): string {
    this.check();
    if (this.#releasing !== undefined) throw new InvalidInput("the lease is released: acquire a key again");
    return this.#grant.key;
  }

  /** The public id of the key. */
  get keyId(): string {
    return this.#grant.key_id;
  }

  /** The pool of the key. */
  get pool(): string {
    return this.#grant.pool;
  }

  /** A number that grows with each lease of the key: a service can refuse older ones. */
  get fencingToken(): number {
    return this.#grant.fencing_token;
  }

  /** Aborts with a `LeaseLost` when the lease is lost: pass it on to all work that uses the key. */
  get signal(): AbortSignal {
    return this.#ended.signal;
  }

  /** Why the lease is lost, if it is: also if its time has passed just now. */
  get lost(): LeaseLost | undefined {
    if (this.#lost === undefined && this.#releasing === undefined && now() >= this.#usableUntil) this.lose(...this.#failure);
    return this.#lost;
  }

  /** Throws `LeaseLost` if the lease is lost. Sends nothing. */
  check(): void {
    if (this.lost !== undefined) throw this.lost;
  }

  /** For how long the key may be used without a further renewal, in seconds. */
  get usableFor(): number {
    return this.lost !== undefined || this.#releasing !== undefined ? 0 : (this.#usableUntil - now()) / 1_000;
  }

  /**
   * Releases the key, with a rest or a quarantine, and a reason for both.
   *
   * While the server does not answer, the release is repeated for at most 10 s; then the lease ends by
   * time. Does nothing after a release. Rejects with `LeaseLost` if the lease had ended before.
   */
  async release(options: ReleaseOptions = {}): Promise<void> {
    const body = releaseBody(options);
    this.#releasing ??= this.#releaseOnce(body);
    await this.#releasing;
  }

  /** Releases the key at the end of a block. Rejects with `LeaseLost` if the lease was lost. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.release();
  }

  /** Asks for a renewal now: events may have been missed. */
  wake(): void {
    this.#isWoken = true;
    this.#notify();
  }

  /** Ends the lease, once, and reports it by `signal`. */
  lose(end: LeaseEnd, detail = ""): void {
    if (this.#lost !== undefined || this.#releasing !== undefined) return;
    this.#lost = new LeaseLost(end, detail, this);
    this.#stop();
    this.#ended.abort(this.#lost);
  }

  get #usableUntil(): number {
    return this.#end - this.#options.margin;
  }

  get #path(): { pool: string; lease: string } {
    return { pool: this.#grant.pool, lease: this.#grant.id };
  }

  #stop(): void {
    this.#followers.leave(this);
    this.#stopped.abort();
    this.#notify();
    this.onEnd();
  }

  /** Ends the lease if a refusal says that it has ended. */
  #endsBy(error: KeypegError): boolean {
    const end = endOf(error);
    if (end !== undefined) this.lose(end);
    return end !== undefined;
  }

  async #renew(): Promise<void> {
    const { signal } = this.#stopped;
    const retries = (): Backoff => new Backoff(10, Math.min(Math.max(this.#length / 16, 50), 5_000));
    const answers: (number | KeypegError)[] = [];
    let backoff = retries();
    while (!signal.aborted) {
      if (now() >= this.#usableUntil) {
        this.lose(...this.#failure);
        return;
      }
      if (answers.length === 0 && !this.#isWoken) await this.#pause(Math.min(this.#nextAt, this.#usableUntil) - now());
      if (signal.aborted) return;
      const isWoken = this.#isWoken;
      this.#isWoken = false;
      if (isWoken) this.#nextAt = now();
      const answer = answers.shift();
      if (answer === undefined) {
        if (now() < this.#nextAt) continue;
        if (now() - this.#grantedAt >= FOLLOW_AFTER) this.#followers.join(this);
        // An earlier attempt may still be answered. It must not be waited for alone.
        if (this.#attempts < ATTEMPTS_MAX) this.#attempt(answers);
        this.#nextAt = now() + Math.min(Math.max(this.#length / 8, 250), 10_000);
      } else if (typeof answer === "number") {
        backoff = retries();
        this.#failure = ["not_renewed", "the server did not answer"];
        const half = this.#length / 2;
        const pause = this.#followers.isFollowing(this) ? half : Math.min(CHECK_EVERY, half);
        this.#nextAt = isWoken ? now() : now() + pause;
      } else if (this.#endsBy(answer)) {
        return;
      } else if (answer instanceof MaxHoldReached) {
        this.#failure = ["max_hold", ""];
        this.#nextAt = now() + Math.max(Math.min(CHECK_EVERY, (this.#end - now()) / 2), 10);
      } else {
        this.#failure = ["not_renewed", answer.message];
        const advice = answer instanceof Refused ? (answer.retryAfter ?? 0) * 1_000 : 0;
        this.#nextAt = now() + backoff.pause(Math.min(advice, this.#length / 8));
      }
    }
  }

  /** Sends one renewal; its answer arrives in `answers`. */
  #attempt(answers: (number | KeypegError)[]): void {
    const sentAt = now();
    this.#attempts += 1;
    const body = this.#options.ttl === undefined ? {} : { ttl_seconds: this.#options.ttl };
    const call = this.#http.call("post", "/v1/pools/{pool}/leases/{lease}/renew", {
      path: this.#path,
      body,
      signal: this.#stopped.signal,
    });
    call
      .then(
        (lease) => {
          this.#length = lease.expires_in_seconds * 1_000;
          // An earlier renewal whose answer was lost can have moved the end further.
          this.#end = Math.max(this.#end, sentAt + this.#length);
          answers.push(sentAt);
        },
        (error: unknown) => {
          answers.push(error instanceof KeypegError ? error : new KeypegError(String(error)));
        },
      )
      .finally(() => {
        this.#attempts -= 1;
        this.#notify();
      });
  }

  /** Waits for the time, an answer, or a reason to renew. */
  #pause(milliseconds: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, Math.max(0, milliseconds));
      this.#notify = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  /** Keeps the key alive, so that it is not purged while it is used. */
  async #keepAlive(): Promise<void> {
    const { expires_at, expires_in_seconds, key_expires_at, key_id, pool } = this.#grant;
    // The server's clock at the grant, continued by ours: both clocks may differ in the date.
    const answeredAt = Date.parse(expires_at) - expires_in_seconds * 1_000;
    const remaining = Date.parse(key_expires_at ?? expires_at) - answeredAt;
    const backoff = new Backoff(50, Math.min(Math.max(remaining / 20, 50), 10_000));
    const call = { path: { pool, id: key_id }, isRepeatable: true, signal: this.#stopped.signal };
    let pause = Math.min((remaining * 2) / 5, KEEP_ALIVE_FIRST);
    for (;;) {
      await sleep(pause, this.#stopped.signal);
      const age = now() - this.#grantedAt;
      try {
        const kept = await this.#http.call("post", "/v1/pools/{pool}/keys/{id}/keepalive", call);
        if (kept.expires_at === null) return;
        backoff.reset();
        pause = Math.max(((Date.parse(kept.expires_at) - answeredAt - age) * 2) / 5, 50);
      } catch (error) {
        this.#stopped.signal.throwIfAborted();
        const isGone = error instanceof UnknownKey || error instanceof UnknownPool;
        if (isGone && this.#endsBy(error)) return;
        pause = backoff.pause(error instanceof Refused ? (error.retryAfter ?? 0) * 1_000 : 0);
      }
    }
  }

  async #releaseOnce(body: components["schemas"]["ReleaseRequest"]): Promise<void> {
    const { lost } = this;
    if (lost !== undefined) {
      // It may still run for the moment in which it was no longer safe to use.
      if (now() < this.#end && ["max_hold", "not_renewed"].includes(lost.end)) {
        const late = new AbortController();
        const timer = setTimeout(() => late.abort(), this.#end - now());
        await this.#sendRelease(body, late.signal).catch(() => undefined);
        clearTimeout(timer);
      }
      throw lost;
    }
    this.#stop();
    await this.#repeatRelease(body);
  }

  async #repeatRelease(body: components["schemas"]["ReleaseRequest"]): Promise<void> {
    const deadline = Math.min(this.#end, now() + RELEASE_PATIENCE);
    const late = new AbortController();
    const timer = setTimeout(() => late.abort(), deadline - now());
    try {
      for (let mayBeReleased = false; ; ) {
        try {
          await this.#sendRelease(body, late.signal);
          return;
        } catch (error) {
          if (!(error instanceof KeypegError) || late.signal.aborted) return;
          // A release whose answer was lost can have ended the lease.
          if (mayBeReleased && error instanceof LeaseEnded && error.problem.cause === "released") return;
          const end = endOf(error);
          if (end !== undefined) {
            this.#lost = new LeaseLost(end, "", this);
            this.#ended.abort(this.#lost);
            throw this.#lost;
          }
          if (error instanceof Refused && !error.isTemporary && error.status !== 401) {
            // The rest or the reason is invalid: the key must not stay leased for that.
            if (Object.keys(body).length > 0) await this.#repeatRelease({});
            throw error;
          }
          mayBeReleased ||= !(error instanceof Refused);
        }
        // The lease ends by time.
        if (now() + RELEASE_PAUSE >= deadline) return;
        await sleep(RELEASE_PAUSE);
      }
    } finally {
      clearTimeout(timer);
    }
  }

  async #sendRelease(body: components["schemas"]["ReleaseRequest"], signal: AbortSignal): Promise<void> {
    await this.#http.call("post", "/v1/pools/{pool}/leases/{lease}/release", { path: this.#path, body, signal });
  }
}

/** Returns why a lease has ended, if a refusal of its renewal or release says so. */
function endOf(error: KeypegError): LeaseEnd | undefined {
  if (error instanceof UnknownPool) return "pool_deleted";
  if (error instanceof UnknownKey) return "key_gone";
  if (!(error instanceof LeaseEnded)) return undefined;
  const causes: Readonly<Record<string, LeaseEnd>> = {
    released: "released",
    expired: "expired",
    superseded: "expired",
    key_gone: "key_gone",
  };
  return causes[error.problem.cause ?? ""] ?? "refused";
}

/**
 * Returns the body of a release. A reason is cut to its limit, and its control characters are replaced,
 * so that a release never fails for it.
 */
export function releaseBody(options: ReleaseOptions): components["schemas"]["ReleaseRequest"] {
  const body: components["schemas"]["ReleaseRequest"] = {};
  if (options.rest !== undefined) body.rest_seconds = seconds("rest", options.rest, 0.001);
  if (options.quarantine === true) body.quarantine = true;
  const reason = [...(options.reason ?? "")].map((sign) => (/[\p{C}\p{Z}]/u.test(sign) && sign !== " " ? "?" : sign));
  if (reason.length > 0) body.reason = reason.slice(0, REASON_MAX).join("");
  return body;
}
