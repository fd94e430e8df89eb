// openapi-generator, typescript-fetch.

import * as api from "./client";
import { type Answer, run } from "./session";

const configuration = new api.Configuration({ basePath: process.argv[2] });
const [keys, leases] = [new api.KeysApi(configuration), new api.LeasesApi(configuration)];
const pools = new api.PoolsApi(configuration);

async function answer<W, T>(
  call: Promise<{ raw: Response; value(): Promise<W> }>,
  fields: (value: W) => T,
): Promise<Answer<T>> {
  try {
    const a = await call;
    return { status: a.raw.status, data: fields(await a.value()) };
  } catch (error) {
    if (!(error instanceof api.ResponseError)) throw error;
    const { status } = error.response;
    return { status, problem: api.ProblemFromJSON(await error.response.json()) };
  }
}

run({
  putPool: (pool) =>
    answer(
      pools.putPoolRaw({ pool, policyRequest: { leaseTtlSeconds: 30 } }),
      (p) => ({ lease_ttl_seconds: p.leaseTtlSeconds }),
    ),
  addKey: (pool) => answer(keys.addKeysRaw({ pool }), (added) => added),
  acquire: (pool, ttlSeconds) =>
    answer(
      leases.acquireRaw({ pool, acquireRequest: { ttlSeconds } }),
      (grant) => ({ key: grant.key, key_id: grant.keyId }),
    ),
});
