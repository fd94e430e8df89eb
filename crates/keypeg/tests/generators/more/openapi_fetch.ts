// openapi-typescript with openapi-fetch.

import createClient from "openapi-fetch";
import type { components, paths } from "./client";
import { type Answer, run } from "./session";

type Problem = components["schemas"]["Problem"];

const client = createClient<paths>({ baseUrl: process.argv[2] });

function answer<T>(a: { data?: T; error?: Problem; response: Response }): Answer<T> {
  return { status: a.response.status, data: a.data, problem: a.error };
}

run({
  async putPool(pool) {
    const body = { lease_ttl_seconds: 30 };
    return answer(await client.PUT("/v1/pools/{pool}", { params: { path: { pool } }, body }));
  },
  async addKey(pool) {
    return answer(await client.POST("/v1/pools/{pool}/keys", { params: { path: { pool } } }));
  },
  async acquire(pool, ttl_seconds) {
    const body = { ttl_seconds };
    const params = { path: { pool } };
    return answer(await client.POST("/v1/pools/{pool}/leases", { params, body }));
  },
});
