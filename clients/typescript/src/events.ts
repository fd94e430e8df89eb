/**
 * The event stream of a pool: parses the subset of server-sent events that Keypeg writes, and says what
 * an event means for a lease. Sends nothing and knows no time.
 */

import type { LeaseEnd } from "./errors.js";

/** The longest line or event in characters: far above what a server writes. */
const LINE_MAX = 1 << 20;

/** An event before its data is parsed. */
export interface Message {
  readonly id: string;
  readonly name: string;
  readonly data: string;
}

/** Assembles lines from chunks, and events from lines. */
export class Parser {
  readonly #decoder = new TextDecoder();
  #rest = "";
  #fields = new Map<string, string>();

  /** Returns the events that are complete. Throws if the stream is not one of Keypeg. */
  feed(chunk: Uint8Array): Message[] {
    const lines = (this.#rest + this.#decoder.decode(chunk, { stream: true })).split("\n");
    this.#rest = lines.pop() ?? "";
    const messages = lines.flatMap((line) => this.#line(line.replace(/\r$/, "")) ?? []);
    if (this.#rest.length + (this.#fields.get("data") ?? "").length > LINE_MAX) throw new RangeError("an event is too long");
    return messages;
  }

  #line(line: string): Message | undefined {
    if (line === "") {
      const fields = this.#fields;
      this.#fields = new Map();
      const data = fields.get("data") ?? "";
      return data === "" ? undefined : { id: fields.get("id") ?? "", name: fields.get("event") ?? "", data };
    }
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    const before = this.#fields.get("data");
    if (name === "data" && before !== undefined) this.#fields.set("data", `${before}\n${value}`);
    else if (["id", "event", "data"].includes(name)) this.#fields.set(name, value);
    return undefined;
  }
}

const OF_LEASE: Readonly<Record<string, LeaseEnd>> = { released: "released", quarantined: "released", expired: "expired" };
const OF_KEY: Readonly<Record<string, LeaseEnd>> = { deleted: "key_deleted", purged: "key_purged" };

/** Returns whether an event of this name can end the lease of the key that it names. */
export function canEndLease(name: string): boolean {
  return name === "granted" || Object.hasOwn(OF_LEASE, name) || Object.hasOwn(OF_KEY, name);
}

/** Returns why the lease with this token has ended, if an event about its key reports it. */
export function leaseEnd(name: string, data: Record<string, unknown>, fencingToken: number): LeaseEnd | undefined {
  if (Object.hasOwn(OF_KEY, name)) return OF_KEY[name];
  // An event of an earlier lease of the same key can arrive late.
  if (Object.hasOwn(OF_LEASE, name)) return data["fencing_token"] === fencingToken ? OF_LEASE[name] : undefined;
  return name === "granted" && Number(data["fencing_token"]) > fencingToken ? "expired" : undefined;
}

/** Parses the data of an event. Throws if it is no JSON object. */
export function dataOf(message: Message): Record<string, unknown> {
  const data: unknown = JSON.parse(message.data);
  if (typeof data !== "object" || data === null) throw new SyntaxError("the data of an event is not an object");
  return data as Record<string, unknown>;
}
