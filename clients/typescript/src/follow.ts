/**
 * Follows the events of pools: one stream for each pool in which a client holds leases.
 *
 * A lease learns from the stream at once that it has ended. Each new connection and each `resync` asks
 * for renewals, which find what the stream missed. While a stream is not connected, leases renew often.
 */

import { Backoff, now, sleep } from "./clock.js";
import { KeypegError, Refused, Unauthorized, UnexpectedAnswer, type LeaseEnd } from "./errors.js";
import { canEndLease, dataOf, leaseEnd, Parser, type Message } from "./events.js";
import type { Http } from "./http.js";

/** The pause after a refusal that rarely changes, such as a missing scope, or too many events. */
const LONG_PAUSE = 60_000;
/** More events per second than this cost a program more than the renewals that replace them. */
const EVENTS_PER_SECOND_MAX = 500;

/** What a follower needs of a lease. */
export interface Followed {
  readonly pool: string;
  readonly keyId: string;
  readonly fencingToken: number;
  /** Asks for a renewal now. */
  wake(): void;
  /** Ends the lease. */
  lose(end: LeaseEnd): void;
}

/** The event streams of one client, by pool. */
export class Followers {
  readonly #http: Http;
  readonly #pools = new Map<string, Follower>();

  constructor(http: Http) {
    this.#http = http;
  }

  /** Follows the events of the lease's pool, if that is not so yet. */
  join(lease: Followed): void {
    const follower = this.#pools.get(lease.pool) ?? new Follower(this.#http, lease.pool);
    this.#pools.set(lease.pool, follower);
    follower.leases.add(lease);
  }

  /** Forgets the lease. The stream ends with the last lease of its pool. */
  leave(lease: Followed): void {
    const follower = this.#pools.get(lease.pool);
    follower?.leases.delete(lease);
    if (follower?.leases.size === 0) {
      this.#pools.delete(lease.pool);
      follower.stop();
    }
  }

  /** Returns whether the end of this lease would arrive as an event. */
  isFollowing(lease: Followed): boolean {
    const follower = this.#pools.get(lease.pool);
    return follower?.isConnected === true && follower.leases.has(lease);
  }
}

class Follower {
  readonly leases = new Set<Followed>();
  readonly #http: Http;
  readonly #pool: string;
  readonly #stopped = new AbortController();
  #lastId: string | undefined;
  isConnected = false;

  constructor(http: Http, pool: string) {
    this.#http = http;
    this.#pool = pool;
    // Rejects only when it is stopped.
    this.#follow().catch(() => undefined);
  }

  stop(): void {
    this.#stopped.abort();
  }

  async #follow(): Promise<never> {
    const backoff = new Backoff(100, 2_000);
    for (;;) {
      let pause = LONG_PAUSE;
      try {
        pause = await this.#read(backoff);
      } catch (error) {
        this.#stopped.signal.throwIfAborted();
        if (error instanceof Refused && !(error instanceof Unauthorized)) {
          const isLasting = error.status < 500 && error.status !== 408;
          pause = isLasting ? LONG_PAUSE : backoff.pause((error.retryAfter ?? 0) * 1_000);
        } else if (error instanceof UnexpectedAnswer) {
          pause = error.isTemporary ? backoff.pause() : LONG_PAUSE;
        } else if (error instanceof KeypegError) {
          pause = backoff.pause();
        }
      }
      if (this.isConnected) {
        this.isConnected = false;
        // A renewal of each lease finds what the stream can have missed.
        for (const lease of this.leases) lease.wake();
      }
      await sleep(pause, this.#stopped.signal);
    }
  }

  /** Reads a stream to its end; returns the pause before the next connection. */
  async #read(backoff: Backoff): Promise<number> {
    const parser = new Parser();
    let [second, count] = [now(), 0];
    for await (const chunk of this.#http.stream(this.#pool, this.#lastId, this.#stopped.signal)) {
      if (!this.isConnected) {
        this.isConnected = true;
        for (const lease of this.leases) lease.wake();
      }
      if (now() - second >= 1_000) [second, count] = [now(), 0];
      for (const message of parser.feed(chunk)) {
        count += 1;
        this.#lastId = message.id || this.#lastId;
        this.#on(message);
      }
      backoff.reset();
      if (count > EVENTS_PER_SECOND_MAX) return LONG_PAUSE;
    }
    return backoff.pause();
  }

  #on(message: Message): void {
    if (message.name === "resync") {
      for (const lease of this.leases) lease.wake();
    } else if (message.name === "dropped") {
      for (const lease of [...this.leases]) lease.lose("pool_deleted");
    } else if (canEndLease(message.name)) {
      const data = dataOf(message);
      for (const lease of [...this.leases].filter((lease) => lease.keyId === data["key_id"])) {
        const end = leaseEnd(message.name, data, lease.fencingToken);
        if (end !== undefined) lease.lose(end);
      }
    }
  }
}
