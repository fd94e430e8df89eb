/** A client of a Keypeg server: `await using lease = await new Client().lease("ci", { wait: "10m" })`. */

export { Client, type ClientOptions, type KeyFilter, type LeaseOptions, type WorkOptions } from "./client.js";
export type { Duration } from "./duration.js";
export * from "./errors.js";
export type { Answer, CallOptions, Method, PathOf, TokenSource } from "./http.js";
export { Lease, type ReleaseOptions } from "./lease.js";
export type { components, operations, paths } from "./schema.js";
