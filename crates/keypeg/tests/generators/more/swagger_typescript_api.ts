// swagger-typescript-api.

import { Api, type HttpResponse, type Problem } from "./client/api";
import { type Answer, run } from "./session";

const { v1 } = new Api({ baseUrl: process.argv[2] });

async function answer<T>(call: Promise<HttpResponse<T, Problem>>): Promise<Answer<T>> {
  const a = await call.catch((refused: HttpResponse<T, Problem>) => refused);
  return a.ok ? { status: a.status, data: a.data } : { status: a.status, problem: a.error };
}

run({
  putPool: (pool) => answer(v1.putPool(pool, { lease_ttl_seconds: 30 })),
  addKey: (pool) => answer(v1.addKeys(pool)),
  acquire: (pool, ttl_seconds) => answer(v1.acquire(pool, { ttl_seconds })),
});
