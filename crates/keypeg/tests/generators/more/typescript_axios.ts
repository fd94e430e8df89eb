// openapi-generator, typescript-axios.

import { AxiosError, type AxiosResponse } from "axios";
import * as api from "./client";
import { type Answer, run } from "./session";

const configuration = new api.Configuration({ basePath: process.argv[2] });
const [keys, leases] = [new api.KeysApi(configuration), new api.LeasesApi(configuration)];
const pools = new api.PoolsApi(configuration);

async function answer<T>(call: Promise<AxiosResponse<T>>): Promise<Answer<T>> {
  try {
    const a = await call;
    return { status: a.status, data: a.data };
  } catch (error) {
    if (!(error instanceof AxiosError) || !error.response) throw error;
    const problem: api.Problem = error.response.data;
    return { status: error.response.status, problem };
  }
}

run({
  putPool: (pool) => answer(pools.putPool(pool, undefined, undefined, { lease_ttl_seconds: 30 })),
  addKey: (pool) => answer(keys.addKeys(pool)),
  acquire: (pool, ttl_seconds) =>
    answer(leases.acquire(pool, undefined, undefined, { ttl_seconds })),
});
