// One session with the client that @hey-api/openapi-ts generates: every answer is decoded.

import { strict as assert } from "node:assert";
import { client } from "./client/client.gen";
import * as api from "./client/index";
import type { Code, Grant, Problem } from "./client/index";

const path = { pool: "generated-typescript" };
async function acquired(): Promise<Grant> {
  const { data, error } = await api.acquire({ path, body: { holder: "h" } });
  assert.ok(data, JSON.stringify(error));
  return data;
}

function refused(answer: { error?: Problem; response: Response }, status: number, code: Code) {
  assert.equal(answer.response.status, status);
  assert.equal(answer.error?.code, code);
  return answer.error;
}

async function main(): Promise<void> {
  client.setConfig({ baseUrl: process.argv[2] });

  const pool = (await api.putPool({ path, body: { lease_ttl_seconds: 30, max_hold_seconds: 60 } })).data;
  assert.equal(pool?.lease_ttl_seconds, 30);
  const added = (await api.addKeys({ path, body: { count: 2 } })).data;
  const values = new Map(added?.keys.map((key) => [key.id, key.key]));
  assert.equal(values.size, 2);

  const first = await acquired();
  const second = await acquired();
  assert.equal(values.get(first.key_id), first.key);
  assert.notEqual(first.key_id, second.key_id);
  assert.ok(second.fencing_token > first.fencing_token);
  assert.ok(new Date(first.expires_at) > new Date(first.granted_at));

  const none = refused(await api.acquire({ path, body: null as never }), 404, "no_key_available");
  assert.equal(none?.leased, 2);
  const invalid = refused(await api.acquire({ path, body: { ttl_seconds: 0 } }), 422, "invalid");
  assert.equal(invalid?.field, "ttl_seconds");

  const lease = { path: { ...path, lease: first.id } };
  assert.equal((await api.renew(lease)).data?.fencing_token, first.fencing_token);
  assert.equal((await api.release({ ...lease, body: { quarantine: true } })).response.status, 204);
  refused(await api.release(lease), 410, "lease_ended");

  const page = (await api.listKeys({ path, query: { limit: 1 } })).data;
  assert.equal(page?.keys.length, 1);
  assert.ok(page.next_cursor);
  const quarantined = (await api.listKeys({ path, query: { state: "quarantined" } })).data;
  assert.deepEqual(quarantined?.keys.map((key) => key.id), [first.key_id]);

  assert.equal((await api.deletePool({ path })).response.status, 204);
  refused(await api.showPool({ path }), 404, "unknown_pool");
}

main().catch((error: unknown) => {
  console.error(error);
  process.exit(1);
});
