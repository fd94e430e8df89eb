// The session that the adapters of the other TypeScript generators share: one success and two
// errors of each kind are decoded into the generated types.

import { strict as assert } from "node:assert";

// What a call answered: the status, and the decoded body of a success or of an error.
export type Answer<T> = {
  status: number;
  data?: T;
  problem?: { code: string; field?: string; leased?: number };
};

// The calls of one generated client, with its own types where it is compiled.
export interface Adapter {
  putPool(pool: string): Promise<Answer<{ lease_ttl_seconds: number }>>;
  addKey(pool: string): Promise<Answer<{ keys: { id: string; key: string }[] }>>;
  acquire(pool: string, ttl?: number): Promise<Answer<{ key: string; key_id: string }>>;
}

async function session(client: Adapter): Promise<void> {
  const pool = `generated-${process.argv[3]}`;
  assert.equal((await client.putPool(pool)).data?.lease_ttl_seconds, 30);
  const added = (await client.addKey(pool)).data?.keys[0];
  const grant = await client.acquire(pool);
  assert.equal(grant.status, 201);
  assert.deepEqual([grant.data?.key, grant.data?.key_id], [added?.key, added?.id]);
  const none = await client.acquire(pool);
  assert.deepEqual([none.status, none.problem?.code], [404, "no_key_available"]);
  assert.equal(none.problem?.leased, 1);
  const invalid = await client.acquire(pool, 0);
  assert.deepEqual([invalid.status, invalid.problem?.code], [422, "invalid"]);
  assert.equal(invalid.problem?.field, "ttl_seconds");
}

export function run(client: Adapter): void {
  session(client).catch((error: unknown) => {
    console.error(error);
    process.exit(1);
  });
}
