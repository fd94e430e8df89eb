/**
 * The client of one server: leases, keep-alives, and typed calls of all other routes.
 *
 * Works in Node and in browsers, by `fetch`. Holds no state but its leases and their event streams.
 */

import { Acquire, REQUEST_WAIT_MAX } from "./acquire.js";
import { Backoff, sleep } from "./clock.js";
import { DURATION_MAX, seconds, type Duration } from "./duration.js";
import { InvalidInput, KeypegError, LeaseLost, Refused, UnknownPool } from "./errors.js";
import { Followers } from "./follow.js";
import { Http, type Answer, type CallOptions, type Method, type PathOf, type TokenSource } from "./http.js";
import { Lease, type ReleaseOptions } from "./lease.js";
import type { components } from "./schema.js";

/** Where the server is, and with which rights it is used. */
export interface ClientOptions {
  /** The address. Default: `KEYPEG_SERVER`; in a browser the origin of the page; else port 8000 of this machine. */
  server?: string;
  /** The access token, or a function that returns it. Default: `KEYPEG_TOKEN_FILE` or `KEYPEG_TOKEN`. */
  token?: TokenSource;
  /** The longest time of a request, without its wait for a key. Default: 60 s. */
  timeout?: Duration;
  /** What sends the requests. Default: the global `fetch`. */
  fetch?: typeof fetch;
}

/** Which keys are listed; by default all. */
export interface KeyFilter {
  /** Only keys in this state. */
  state?: Schemas["KeyState"];
  /** Only keys with exactly this label. */
  label?: string;
}

/** What an acquire asks for. */
export interface LeaseOptions {
  /** How long to wait for a free key, up to 7 days, over restarts of the server. Default: not at all. */
  wait?: Duration;
  /** How long the key stays leased if this program dies. Default: `lease_ttl_seconds` of the pool. */
  ttl?: Duration;
  /** A name of the holder, for people. */
  holder?: string;
  /** How long before its end a lease that is not renewed counts as lost. Default: 0.25 s. */
  margin?: Duration;
  /** Whether to keep the key alive while it is held. Default: true. */
  keepAlive?: boolean;
  /** Ends the wait; the lease that may exist is released. */
  signal?: AbortSignal;
  /** Called before the request for a key is repeated after a failure. */
  onRetry?: (error: KeypegError) => void;
}

/** What an acquire asks for, and what an error of the work means for the key. */
export interface WorkOptions extends LeaseOptions {
  /** Returns how long the key rests after this error, or `undefined` for no rest. */
  restOn?: (error: unknown) => Duration | undefined;
  /** Returns whether the key goes into quarantine after this error. */
  quarantineOn?: (error: unknown) => boolean;
}

type Schemas = components["schemas"];

/** A client of one server. */
export class Client implements AsyncDisposable {
  readonly #http: Http;
  readonly #followers: Followers;
  readonly #leases = new Set<Lease>();

  /** Throws `InvalidInput` if an option or a variable is invalid. Sends nothing. */
  constructor(options: ClientOptions = {}) {
    const environment = variables();
    const here = globalThis as { location?: { origin?: string } };
    const origin = here.location?.origin?.startsWith("http") === true ? here.location.origin : "http://127.0.0.1:8000";
    const server = options.server ?? environment["KEYPEG_SERVER"] ?? origin;
    const timeout = seconds("timeout", options.timeout ?? 60, 0.001, 3_600) * 1_000;
    const fetcher = options.fetch ?? globalThis.fetch.bind(globalThis);
    this.#http = new Http(server, options.token ?? tokenOf(environment), timeout, fetcher);
    this.#followers = new Followers(this.#http);
  }

  /**
   * Acquires a key and renews its lease until it is released, up to `max_hold_seconds` of the pool.
   *
   * ```ts
   * await using lease = await client.lease("ci", { wait: "10m" });
   * await test({ account: lease.key, signal: lease.signal });
   * ```
   *
   * Rejects with `NoKeyAvailable` without a wait, and with `WaitEnded` after one.
   */
  async lease(pool: string, options: LeaseOptions = {}): Promise<Lease> {
    const ttl = options.ttl === undefined ? undefined : seconds("ttl", options.ttl, 0.001);
    const margin = seconds("margin", options.margin ?? 0.25, 0, 3_600) * 1_000;
    const sent = await new Acquire(this.#http, {
      pool,
      ttl,
      holder: options.holder,
      wait: seconds("wait", options.wait ?? 0, 0, DURATION_MAX),
      signal: options.signal,
      onRetry: options.onRetry,
      requestWait: REQUEST_WAIT_MAX,
    }).run();
    const length = (sent.grant.waited_seconds + sent.grant.expires_in_seconds) * 1_000;
    const held = { ttl, margin: Math.min(margin, length / 4), keepAlive: options.keepAlive ?? true };
    const lease = new Lease(this.#http, this.#followers, sent, held);
    this.#leases.add(lease);
    lease.onEnd = () => this.#leases.delete(lease);
    return lease;
  }

  /**
   * Runs the work with a key, and releases it, with a rest or a quarantine by the error of the work.
   *
   * Rejects with `LeaseLost` within a second of a loss, also if the work goes on: the work ends itself
   * by `lease.signal`. The reason of a rest is the name of the error, never its text.
   */
  async withLease<T>(pool: string, options: WorkOptions, work: (lease: Lease) => Promise<T> | T): Promise<T> {
    const lease = await this.lease(pool, options);
    let result: T;
    try {
      result = await raceWithLoss(lease, work);
    } catch (error) {
      const body = error instanceof LeaseLost ? {} : releaseAfter(error, options);
      // The error of the work is the one that counts.
      await lease.release(body).catch(() => undefined);
      throw error;
    }
    await lease.release();
    return result;
  }

  /**
   * Keeps keys alive until the signal is aborted: those with these ids, or all keys of the pool.
   *
   * The interval is the one that the pool recommends. The first failure rejects; later ones are repeated,
   * except that the pool is gone. Resolves when no key is left that time purges.
   */
  async keepAlive(pool: string, options: { signal: AbortSignal; keyIds?: string[] }): Promise<void> {
    const { signal } = options;
    const path = { pool };
    let ids = options.keyIds;
    const keep = async (): Promise<number | null> => {
      const body: Schemas["KeepAliveRequest"] = ids === undefined ? { all: true } : { ids };
      const kept = await this.call("post", "/v1/pools/{pool}/keepalive", { path, body, signal, isRepeatable: true });
      ids = ids?.filter((id) => !kept.missing.includes(id));
      // The policy of the pool can have changed.
      return (await this.call("get", "/v1/pools/{pool}", { path, signal })).keepalive_every_seconds;
    };
    let every = await keep();
    while (every !== null && ids?.length !== 0) {
      const backoff = new Backoff(100, Math.max(every * 250, 100));
      let pause = every * 1_000;
      for (let isKept = false; !isKept; ) {
        await sleep(pause, signal).catch(() => undefined);
        if (signal.aborted) return;
        try {
          every = await keep();
          isKept = true;
        } catch (error) {
          if (signal.aborted) return;
          if (!(error instanceof KeypegError) || error instanceof UnknownPool) throw error;
          pause = backoff.pause(error instanceof Refused ? (error.retryAfter ?? 0) * 1_000 : 0);
        }
      }
    }
  }

  /**
   * Returns whether a value is a key of the pool in one of these states, and which holder has it: for a
   * service that accepts the keys of a pool. An unknown value is no error.
   */
  verify(pool: string, key: string, states: readonly Schemas["KeyState"][] = ["leased"]): Promise<Schemas["Verification"]> {
    const options = { path: { pool }, query: { states: states.join(",") }, body: { key } };
    return this.call("post", "/v1/pools/{pool}/verify", options);
  }

  /** Yields the keys of a pool without their values, page by page; only those in this state, or that pass this filter. */
  async *keys(pool: string, filter: Schemas["KeyState"] | KeyFilter = {}): AsyncGenerator<Schemas["Key"]> {
    const wanted = typeof filter === "string" ? { state: filter } : filter;
    let cursor: string | undefined;
    do {
      const query = { ...wanted, ...(cursor !== undefined && { cursor }) };
      const page = await this.call("get", "/v1/pools/{pool}/keys", { path: { pool }, query });
      yield* page.keys;
      cursor = page.next_cursor ?? undefined;
    } while (cursor !== undefined);
  }

  /**
   * Takes a key out of rotation until it is put back. A leased key loses its lease, or with `when: "free"`
   * is draining: it is quarantined when the lease ends.
   */
  quarantine(pool: string, id: string, body: Schemas["QuarantineRequest"] = {}): Promise<Schemas["Key"]> {
    return this.call("post", "/v1/pools/{pool}/keys/{id}/quarantine", { path: { pool, id }, body });
  }

  /** Puts a quarantined key back, or cancels the draining of a leased one. */
  endQuarantine(pool: string, id: string): Promise<Schemas["Key"]> {
    return this.call("delete", "/v1/pools/{pool}/keys/{id}/quarantine", { path: { pool, id } });
  }

  /**
   * Calls any route, with the types of the OpenAPI document:
   * `client.call("put", "/v1/pools/{pool}", { path: { pool: "ci" }, body: { max_hold_seconds: 3600 } })`.
   */
  call<M extends Method, P extends PathOf<M>>(method: M, path: P, options?: CallOptions<P, M>): Promise<Answer<P, M>> {
    return this.#http.call(method, path, options);
  }

  /** Releases the leases that are held, and ends the event streams. */
  async close(): Promise<void> {
    await Promise.allSettled([...this.#leases].map((lease) => lease.release()));
  }

  /** Closes the client at the end of a block. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

/** Rejects when the lease is lost, even if the work goes on. */
async function raceWithLoss<T>(lease: Lease, work: (lease: Lease) => Promise<T> | T): Promise<T> {
  let onAbort = (): void => undefined;
  const loss = new Promise<never>((_, reject) => {
    onAbort = () => reject(lease.signal.reason);
    lease.signal.addEventListener("abort", onAbort);
  });
  loss.catch(() => undefined);
  const running = Promise.resolve().then(() => work(lease));
  running.catch(() => undefined);
  try {
    return await Promise.race([running, loss]);
  } finally {
    lease.signal.removeEventListener("abort", onAbort);
  }
}

function releaseAfter(error: unknown, options: WorkOptions): ReleaseOptions {
  // The name, not the words: they can contain a secret.
  const reason = error instanceof Error ? error.name : typeof error;
  if (options.quarantineOn?.(error) === true) return { quarantine: true, reason };
  const rest = options.restOn?.(error);
  return rest === undefined ? {} : { rest, reason };
}

interface Process {
  env?: Record<string, string | undefined>;
  getBuiltinModule?: (name: string) => { readFileSync(path: string, encoding: "utf8"): string } | undefined;
}

function currentProcess(): Process {
  return (globalThis as { process?: Process }).process ?? {};
}

function variables(): Record<string, string | undefined> {
  return currentProcess().env ?? {};
}

/** Returns the token of the environment: the file, which is read for each request, comes first. */
function tokenOf(environment: Record<string, string | undefined>): TokenSource | undefined {
  const file = environment["KEYPEG_TOKEN_FILE"];
  if (file === undefined || file === "") return environment["KEYPEG_TOKEN"];
  const files = currentProcess().getBuiltinModule?.("node:fs");
  if (files === undefined) {
    throw new InvalidInput("KEYPEG_TOKEN_FILE needs Node 20.16 or later: pass the option token, a function that reads the file");
  }
  return () => {
    try {
      return files.readFileSync(file, "utf8").trim();
    } catch (error) {
      const words = error instanceof Error ? error.message : String(error);
      throw new InvalidInput(`KEYPEG_TOKEN_FILE cannot be read: ${words}`);
    }
  };
}
