/**
 * Requests to one server: what is sent, and what an answer or its absence means.
 *
 * A call is sent once, except after a 401 if the access token has changed since, and except calls
 * that are safe to repeat. No error contains the path of a request, which can have the id of a lease.
 */

import { InvalidInput, KeypegError, Refused, Unauthorized, UnexpectedAnswer, Unreachable } from "./errors.js";
import type { paths } from "./schema.js";

/** A method of HTTP, as the schema writes it. */
export type Method = "get" | "put" | "post" | "delete";
type Operation<P extends keyof paths, M extends Method> = NonNullable<paths[P][M]>;
/** The paths that have a method. */
export type PathOf<M extends Method> = {
  [P in keyof paths]: paths[P][M] extends object ? P : never;
}[keyof paths];
type Parameter<O, K extends string> = O extends { parameters: { [key in K]?: infer T } } ? T : never;
type JsonOf<T> = T extends { content: { "application/json": infer J } } ? J : undefined;
/** The JSON of a successful answer. */
export type Answer<P extends keyof paths, M extends Method> =
  Operation<P, M> extends { responses: infer R } ? { [S in keyof R & (200 | 201 | 204)]: JsonOf<R[S]> }[keyof R & (200 | 201 | 204)] : never;
/** What a call sends, and how. */
export interface CallOptions<P extends keyof paths, M extends Method> {
  /** The parameters in the path. */
  path?: Parameter<Operation<P, M>, "path">;
  /** The parameters after the question mark. */
  query?: Parameter<Operation<P, M>, "query">;
  /** Further headers, such as `Idempotency-Key`. */
  headers?: Record<string, string>;
  /** The body. */
  body?: Operation<P, M> extends { requestBody?: { content: { "application/json": infer B } } } ? B : never;
  /** Ends the call; it may be applied nevertheless. */
  signal?: AbortSignal;
  /** How long the server may wait before it answers, in seconds, beyond the timeout of a call. */
  wait?: number;
  /** Whether it may be sent twice if its connection was closed. */
  isRepeatable?: boolean;
}

/** A token, or a function that returns it; it is called again after the server has refused the token. */
export type TokenSource = string | (() => string | undefined | Promise<string | undefined>);

/** After this time without a byte a stream counts as dead: three times the interval of comments. */
const STREAM_SILENCE = 45_000;
const SEGMENT = /^[A-Za-z0-9_.-]+$/;
/** What a runtime names a connection that was never opened: nothing was sent. */
const NEVER_SENT = new Set(["ECONNREFUSED", "ENOTFOUND", "EAI_AGAIN", "EHOSTUNREACH", "ENETUNREACH", "UND_ERR_CONNECT_TIMEOUT"]);

/** What one client sends its requests with. */
export class Http {
  readonly server: string;
  /** The longest time of a request without its wait for a key, in milliseconds. */
  readonly timeout: number;
  readonly #token: TokenSource | undefined;
  readonly #fetch: typeof fetch;

  constructor(server: string, token: TokenSource | undefined, timeout: number, fetcher: typeof fetch) {
    this.server = parse(server);
    this.#token = token;
    this.timeout = timeout;
    this.#fetch = fetcher;
  }

  /** Sends a request and returns its JSON, or `undefined` for an answer without a body. */
  async call<M extends Method, P extends PathOf<M>>(
    method: M,
    path: P,
    options: CallOptions<P, M> = {},
  ): Promise<Answer<P, M>> {
    const target = this.#target(path, options.path, options.query);
    const headers: Record<string, string> = { ...options.headers };
    const request: RequestInit = { method: method.toUpperCase(), headers };
    if (options.body !== undefined) {
      headers["content-type"] = "application/json";
      request.body = JSON.stringify(options.body);
    }
    const limit = this.timeout + (options.wait ?? 0) * 1_000;
    for (let attempts = options.isRepeatable === true ? 2 : 1; ; attempts--) {
      const token = await this.token();
      try {
        return (await this.#send(target, request, headers, token, limit, options.signal)) as Answer<P, M>;
      } catch (error) {
        if (error instanceof Unauthorized && (await this.token()) !== token) continue;
        // The server may have closed a kept connection in this moment.
        const isClosed = error instanceof Unreachable && error.wasSent && options.signal?.aborted !== true;
        if (!isClosed || attempts <= 1) throw error;
      }
    }
  }

  /** Returns the present access token. */
  async token(): Promise<string | undefined> {
    const token = typeof this.#token === "function" ? await this.#token() : this.#token;
    // A line break in a token would be part of the header.
    if (token !== undefined && !/^[\x21-\x7e]+$/.test(token)) {
      throw new InvalidInput("the access token is empty or has a character that is not visible ASCII");
    }
    return token;
  }

  async #send(
    target: string,
    request: RequestInit,
    headers: Record<string, string>,
    token: string | undefined,
    limit: number,
    signal: AbortSignal | undefined,
  ): Promise<unknown> {
    const ending = new Ending(limit, signal);
    try {
      const sent = { ...request, headers: withToken(headers, token), signal: ending.signal, redirect: "manual" as const };
      const response = await this.#fetch(target, sent);
      if (response.status === 204) return undefined;
      const body = await response.text();
      return this.#answer(response, body);
    } catch (error) {
      if (error instanceof KeypegError) throw error;
      if (signal?.aborted) throw signal.reason;
      throw this.#unreachable(error, ending.isLate);
    } finally {
      ending.clear();
    }
  }

  /**
   * Yields the chunks of an event stream, after the event with the id `after`. Ends with an error when
   * no byte arrives for too long.
   */
  async *stream(pool: string, after: string | undefined, signal: AbortSignal): AsyncGenerator<Uint8Array> {
    const headers: Record<string, string> = { accept: "text/event-stream" };
    if (after !== undefined) headers["last-event-id"] = after;
    const target = this.#target("/v1/pools/{pool}/events", { pool });
    const ending = new Ending(STREAM_SILENCE, signal);
    try {
      const sent = { headers: withToken(headers, await this.token()), signal: ending.signal, redirect: "manual" as const };
      const response = await this.#fetch(target, sent);
      if (!response.ok || response.body === null) {
        this.#answer(response, await response.text());
        throw new UnexpectedAnswer(response.status, "its body is empty");
      }
      const reader = response.body.getReader();
      try {
        for (;;) {
          ending.extend();
          const { done, value } = await reader.read();
          if (done) return;
          yield value;
        }
      } finally {
        reader.cancel().catch(() => undefined);
      }
    } catch (error) {
      if (error instanceof KeypegError) throw error;
      throw this.#unreachable(error, ending.isLate);
    } finally {
      ending.clear();
    }
  }

  #target(path: string, values?: unknown, query?: unknown): string {
    const given = (values ?? {}) as Record<string, unknown>;
    const filled = path.replace(/\{(\w+)\}/g, (_, name: string) => segment(name, given[name]));
    const pairs = Object.entries((query ?? {}) as Record<string, unknown>).filter(([, value]) => value !== undefined);
    const search = new URLSearchParams(pairs.map(([name, value]) => [name, String(value)])).toString();
    return `${this.server}${filled}${search && `?${search}`}`;
  }

  #answer(response: Response, body: string): unknown {
    let json: unknown;
    try {
      json = JSON.parse(body);
    } catch {
      throw unexpected(response, body);
    }
    if (response.ok) return json;
    const advice = response.headers.get("retry-after") ?? "";
    const refused = Refused.of(json, /^\d{1,6}$/.test(advice) ? Number(advice) : undefined);
    throw refused ?? unexpected(response, body);
  }

  #unreachable(error: unknown, isLate: boolean): KeypegError {
    const { code, message } = rootOf(error);
    const reason = isLate ? "it did not answer in time" : message;
    const isCertificate = code.includes("CERT") || code.includes("SELF_SIGNED");
    const hint = isCertificate ? "; Node reads further authorities from the file that NODE_EXTRA_CA_CERTS names" : "";
    const words = `the server at ${new URL(this.server).origin} cannot be reached: ${reason}${hint}`;
    return new Unreachable(words, !NEVER_SENT.has(code) && !isCertificate, error);
  }
}

/** Aborts a request after a time, or with the signal of its caller. */
class Ending {
  readonly #controller = new AbortController();
  readonly #from: AbortSignal | undefined;
  readonly #limit: number;
  readonly #onAbort = (): void => this.#controller.abort(this.#from?.reason);
  #timer: ReturnType<typeof setTimeout> | undefined;
  isLate = false;

  constructor(limit: number, from: AbortSignal | undefined) {
    this.#limit = limit;
    this.#from = from;
    if (from?.aborted) this.#onAbort();
    from?.addEventListener("abort", this.#onAbort);
    this.extend();
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** Lets the time begin again. */
  extend(): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.isLate = true;
      this.#controller.abort();
    }, this.#limit);
  }

  clear(): void {
    clearTimeout(this.#timer);
    this.#from?.removeEventListener("abort", this.#onAbort);
  }
}

function withToken(headers: Record<string, string>, token: string | undefined): Record<string, string> {
  return token === undefined ? headers : { ...headers, authorization: `Bearer ${token}` };
}

function unexpected(response: Response, body: string): UnexpectedAnswer {
  const type = (response.headers.get("content-type") ?? "").split(";")[0]?.trim().slice(0, 100);
  const what = body === "" ? "its body is empty" : type ? `its content type is ${type}` : "it has no content type";
  return new UnexpectedAnswer(response.status, `${what}; check the address of the server`);
}

/** Returns the code and the words of the root cause, which is the most specific. */
function rootOf(error: unknown): { code: string; message: string } {
  let [code, message] = ["", String(error)];
  for (let cause = error, depth = 0; cause instanceof Error && depth < 8; cause = cause.cause, depth++) {
    message = cause.message || message;
    code = String((cause as { code?: unknown }).code ?? code);
    // Node tries several addresses of a name; each attempt has failed.
    const attempts = (cause as { errors?: unknown }).errors;
    if (Array.isArray(attempts) && attempts[0] instanceof Error && !cause.message) message = attempts[0].message;
  }
  return { code, message };
}

/** Checks an address: http or https, host, port, a path if a proxy adds one. */
function parse(address: string): string {
  let url: URL;
  try {
    url = new URL(address);
  } catch {
    throw new InvalidInput(`invalid server address ${JSON.stringify(address)}: use http://HOST:PORT or https://HOST:PORT`);
  }
  if (url.username || url.password) {
    throw new InvalidInput("invalid server address: remove the user name and the password; an access token has its own option");
  }
  if (!["http:", "https:"].includes(url.protocol) || url.search || url.hash || /[?#]$/.test(address)) {
    throw new InvalidInput(`invalid server address ${JSON.stringify(address)}: use http://HOST:PORT, or https://HOST:PORT/PATH behind a proxy`);
  }
  return url.origin + url.pathname.replace(/\/+$/, "");
}

/** Checks a name or an id before it becomes part of a path, so that it cannot change the path. */
function segment(name: string, value: unknown): string {
  if (typeof value !== "string" || !SEGMENT.test(value) || value === "." || value === "..") {
    throw new InvalidInput(`invalid ${name} ${JSON.stringify(value)}: only letters, digits and _.- are allowed`);
  }
  return value;
}
