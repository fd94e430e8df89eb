// orval, with its client for fetch.

import { acquire, addKeys, type Problem, putPool } from "./client";
import { type Answer, run } from "./session";

// The generated client asks for paths only, as in a browser: the session adds the server.
const send = globalThis.fetch;
globalThis.fetch = (path, init) => send(`${process.argv[2]}${path}`, init);

function answer<T extends object>(a: { status: number; data: T | Problem }): Answer<T> {
  if ("code" in a.data) {
    return { status: a.status, problem: a.data };
  }
  return { status: a.status, data: a.data as T };
}

run({
  async putPool(pool) {
    const a = await putPool(pool, { lease_ttl_seconds: 30 });
    return a.status === 200 || a.status === 201 ? answer(a) : answer<never>(a);
  },
  async addKey(pool) {
    const a = await addKeys(pool);
    return a.status === 201 ? answer(a) : answer<never>(a);
  },
  async acquire(pool, ttl_seconds) {
    const a = await acquire(pool, { ttl_seconds });
    return a.status === 201 ? answer(a) : answer<never>(a);
  },
});
