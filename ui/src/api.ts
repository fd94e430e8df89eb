// Calls to the server. Keeps the access token in memory alone, knows how a problem looks, and how far
// the clock of the server is from that of the browser. Does not know what is shown.
import type { components } from "./openapi";

type Schemas = components["schemas"];
export type Pool = Schemas["Pool"];
export type Key = Schemas["Key"];
export type NewKey = Schemas["AddedKey"];
export type KeyState = Schemas["KeyState"];
export type History = Schemas["History"];
export type Access = Schemas["Access"];
export type Cluster = Schemas["Cluster"];
export type PolicyRequest = Schemas["PolicyRequest"];

export class Failure extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
    readonly problem: Record<string, unknown> = {},
  ) {
    super(message);
  }
}

let token: string | null = null;
let skewMs = 0;
const signedOut = new Set<() => void>();

export function setToken(value: string | null): void {
  token = value;
}

export function hasToken(): boolean {
  return token !== null;
}

/** Calls `then` when the server no longer accepts the token. */
export function onSignedOut(then: () => void): () => void {
  signedOut.add(then);
  return () => signedOut.delete(then);
}

/** Returns the present instant by the clock of the server, in milliseconds. */
export function serverNow(): number {
  return Date.now() + skewMs;
}

function headers(extra: Record<string, string> = {}): Record<string, string> {
  return token === null ? extra : { ...extra, authorization: `Bearer ${token}` };
}

function noteClock(response: Response, sentAt: number): void {
  const date = Date.parse(response.headers.get("date") ?? "");
  if (Number.isNaN(date)) return;
  // The header has whole seconds: only a difference beyond that is one of the clocks.
  const skew = date + 500 - (sentAt + Date.now()) / 2;
  skewMs = Math.abs(skew) < 1500 ? 0 : skew;
}

export interface CallOptions {
  body?: unknown;
  headers?: Record<string, string>;
  signal?: AbortSignal | undefined;
}

/** Sends a request and returns its response; a refusal throws a `Failure`. */
export async function request(method: string, path: string, options: CallOptions = {}): Promise<Response> {
  const hasBody = options.body !== undefined;
  const sentAt = Date.now();
  let response: Response;
  try {
    response = await fetch(path, {
      method,
      headers: headers({ ...(hasBody ? { "content-type": "application/json" } : {}), ...options.headers }),
      body: hasBody ? JSON.stringify(options.body) : null,
      signal: options.signal ?? null,
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
    });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Failure(0, "unreachable", "The server does not answer. The page tries again by itself.");
  }
  noteClock(response, sentAt);
  if (response.ok) return response;
  const problem = (await response.json().catch(() => ({}))) as Record<string, unknown>;
  const code = typeof problem.code === "string" ? problem.code : "unknown";
  const detail = typeof problem.detail === "string" ? problem.detail : `The server answered ${response.status}.`;
  if (response.status === 401) signedOut.forEach((then) => then());
  throw new Failure(response.status, code, detail, problem);
}

/** Sends a request and returns the JSON of its response. */
export async function call<T>(method: string, path: string, options: CallOptions = {}): Promise<T> {
  const response = await request(method, path, options);
  return response.status === 204 ? (undefined as T) : ((await response.json()) as T);
}

export function poolPath(pool: string): string {
  return `/v1/pools/${encodeURIComponent(pool)}`;
}

export function keyPath(pool: string, key: string): string {
  return `${poolPath(pool)}/keys/${encodeURIComponent(key)}`;
}

/** Returns what an error says, for people. */
export function textOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

export interface ServerEvent {
  id: string;
  name: string;
  data: Record<string, unknown>;
}

/** The longest frame that is read; a longer one is not an event of this server. */
const FRAME_MAX = 1 << 20;

/** Reads the events of a pool until `signal` or the end of the stream. */
export async function followEvents(
  pool: string,
  lastId: string | null,
  signal: AbortSignal,
  each: (event: ServerEvent) => void,
): Promise<void> {
  const extra: Record<string, string> = lastId === null ? {} : { "last-event-id": lastId };
  const response = await request("GET", `${poolPath(pool)}/events`, { headers: { accept: "text/event-stream", ...extra }, signal });
  const reader = response.body?.pipeThrough(new TextDecoderStream()).getReader();
  if (!reader) return;
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += value;
    let end = rest.indexOf("\n\n");
    while (end >= 0) {
      const event = parseFrame(rest.slice(0, end));
      if (event) each(event);
      rest = rest.slice(end + 2);
      end = rest.indexOf("\n\n");
    }
    if (rest.length > FRAME_MAX) throw new Failure(0, "malformed", "The server sent an event that is too long.");
  }
}

function parseFrame(frame: string): ServerEvent | null {
  let id = "";
  let name = "message";
  let data = "";
  for (const line of frame.split("\n")) {
    if (line.startsWith("id: ")) id = line.slice(4);
    else if (line.startsWith("event: ")) name = line.slice(7);
    else if (line.startsWith("data: ")) data += line.slice(6);
  }
  if (data === "") return null;
  try {
    return { id, name, data: JSON.parse(data) as Record<string, unknown> };
  } catch {
    return null;
  }
}
