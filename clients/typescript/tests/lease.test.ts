/** Leases against a real server: how they begin, how they are kept, how they end, and over which failures. */

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { Client, InvalidInput, LeaseLost, NoKeyAvailable, Unreachable, WaitEnded, type Lease } from "keypeg";
import { Acquire } from "./node_modules/keypeg/dist/acquire.js";
import { Http } from "./node_modules/keypeg/dist/http.js";
import { Proxy, Server, poolOf, stateOf, waitFor } from "./server.js";

const server = new Server();
let client: Client;

before(async () => {
  await server.start();
  client = new Client({ server: server.url });
});
after(async () => {
  await client.close();
  await server.end();
});

/** Returns what a promise rejects with. */
async function failure(promise: Promise<unknown>): Promise<unknown> {
  return promise.then(
    () => assert.fail("it did not fail"),
    (error: unknown) => error,
  );
}

/** Resolves with the reason when the lease is lost. */
async function loss(lease: Lease): Promise<LeaseLost> {
  await waitFor("the loss", () => lease.signal.aborted);
  assert.ok(lease.signal.reason instanceof LeaseLost);
  return lease.signal.reason;
}

function forceRelease(lease: Lease) {
  return client.call("post", "/v1/pools/{pool}/keys/{id}/release", { path: { pool: lease.pool, id: lease.keyId } });
}

/** Acquires with requests that wait for one second each. */
function acquire(url: string, pool: string, wait: number, signal?: AbortSignal, onRetry?: () => void) {
  const http = new Http(url, undefined, 10_000, fetch);
  return new Acquire(http, { pool, ttl: 60, holder: undefined, wait, signal, onRetry, requestWait: 1 }).run();
}

test("a key is held for a block and released at its end", async () => {
  const pool = await poolOf(client, 1);
  {
    await using lease = await client.lease(pool, { holder: "test" });
    assert.equal(lease.key, `${pool}-0`);
    assert.ok(lease.usableFor > 0 && lease.fencingToken > 0);
    assert.equal((await stateOf(client, pool)).leased, 1);
    assert.ok((await failure(client.lease(pool))) instanceof NoKeyAvailable);
  }
  assert.equal((await stateOf(client, pool)).available, 1);
});

test("a lease is renewed again and again", async () => {
  const pool = await poolOf(client, 1);
  await using lease = await client.lease(pool, { ttl: "20s" });
  const path = { pool, id: lease.keyId };
  const first = await client.call("get", "/v1/pools/{pool}/keys/{id}", { path });
  await waitFor("two renewals", async () => {
    const key = await client.call("get", "/v1/pools/{pool}/keys/{id}", { path });
    assert.equal(key.lease?.fencing_token, lease.fencingToken);
    return Date.parse(key.lease.expires_at) - Date.parse(first.lease?.expires_at ?? "") > 1_200;
  });
  assert.equal(lease.lost, undefined);
});

test("a lease that ends early aborts its signal, long before its TTL, and its key cannot be read", async () => {
  const pool = await poolOf(client, 1);
  // Its TTL is a minute, more than the test waits.
  const lease = await client.lease(pool);
  await forceRelease(lease);
  assert.equal((await loss(lease)).end, "released");
  assert.throws(() => lease.key, LeaseLost);
  assert.throws(() => lease.check(), LeaseLost);
  assert.equal(lease.usableFor, 0);
  assert.ok((await failure(lease.release())) instanceof LeaseLost);
});

test("leases that follow the events of their pool learn why they end", async () => {
  const pool = await poolOf(client, 3);
  const streams: AbortSignal[] = [];
  const renewals = new Map<string, number>();
  const counting: typeof fetch = (target, request) => {
    const path = String(target);
    if (path.endsWith("/events") && request?.signal) streams.push(request.signal);
    if (path.endsWith("/renew")) renewals.set(path, (renewals.get(path) ?? 0) + 1);
    return fetch(target, request);
  };
  const own = new Client({ server: server.url, fetch: counting });
  const leases = [await own.lease(pool), await own.lease(pool), await own.lease(pool)] as const;
  // The third renewal is later than two seconds, the age at which a lease joins the stream.
  await waitFor("a stream for all", () => streams.length > 0 && renewals.size === 3 && Math.min(...renewals.values()) >= 3);
  await client.call("delete", "/v1/pools/{pool}/keys/{id}", { path: { pool, id: leases[0].keyId } });
  // A renewal that is under way can bring the news before the stream does, without the cause.
  assert.ok(["key_deleted", "key_gone"].includes((await loss(leases[0])).end));
  await forceRelease(leases[1]);
  assert.equal((await loss(leases[1])).end, "released");
  assert.equal(leases[2].lost, undefined);
  await client.call("delete", "/v1/pools/{pool}", { path: { pool } });
  assert.equal((await loss(leases[2])).end, "pool_deleted");
  assert.equal(streams.length, 1);
  await waitFor("the end of the stream", () => streams[0]?.aborted);
});

test("work whose lease is lost is rejected, also if it goes on", async () => {
  const pool = await poolOf(client, 1);
  const error = await failure(
    client.withLease(pool, {}, async (lease) => {
      await forceRelease(lease);
      await new Promise(() => undefined);
    }),
  );
  assert.ok(error instanceof LeaseLost && error.end === "released");
});

test("a block that fails after a loss still names the loss", async () => {
  const pool = await poolOf(client, 1);
  const error = await failure(
    (async () => {
      await using lease = await client.lease(pool);
      await forceRelease(lease);
      await loss(lease);
      throw new Error("the work");
    })(),
  );
  assert.equal(LeaseLost.in(error)?.end, "released");
  assert.equal(LeaseLost.in(new Error("another")), undefined);
});

test("an error of the work makes the key rest or puts it into quarantine, and is passed on", async () => {
  const pool = await poolOf(client, 2);
  const options = {
    restOn: (error: unknown) => (error instanceof RangeError ? "1h" : undefined),
    quarantineOn: (error: unknown) => error instanceof TypeError,
  };
  const fail = (error: Error) => failure(client.withLease(pool, options, () => Promise.reject(error)));
  assert.ok((await fail(new RangeError("secret"))) instanceof RangeError);
  assert.ok((await fail(new TypeError("secret"))) instanceof TypeError);
  const states = new Map<string, string | null>();
  for await (const key of client.keys(pool)) states.set(key.state, key.reason);
  assert.deepEqual([states.get("resting"), states.get("quarantined")], ["RangeError", "TypeError"]);
  const words = await client.withLease(await poolOf(client, 1), options, (lease) => lease.key.length);
  assert.ok(words > 0);
});

test("a release has a rest and a reason of any text", async () => {
  const pool = await poolOf(client, 1);
  const lease = await client.lease(pool);
  await lease.release({ rest: "1h", reason: `daily\nlimit ${"x".repeat(400)}` });
  await lease.release();
  assert.equal((await stateOf(client, pool)).resting, 1);
  assert.throws(() => lease.key, InvalidInput);
});

test("a wait is longer than the longest wait of a request and keeps its place", async () => {
  const pool = await poolOf(client, 1);
  const holder = await client.lease(pool);
  const order: string[] = [];
  const first = acquire(server.url, pool, 25).then((sent) => (order.push("first"), sent));
  await waitFor("the first waiter", async () => (await stateOf(client, pool)).waiting === 1);
  const second = acquire(server.url, pool, 25).then((sent) => (order.push("second"), sent));
  await waitFor("the second waiter", async () => (await stateOf(client, pool)).waiting === 2);
  // Several requests long.
  await sleep(3_500);
  await holder.release();
  const release = async ({ grant }: { grant: { id: string } }) =>
    client.call("post", "/v1/pools/{pool}/leases/{lease}/release", { path: { pool, lease: grant.id } });
  await release(await first);
  await release(await second);
  assert.deepEqual(order, ["first", "second"]);
});

test("a wait ends with an error that says what the last answer was", async () => {
  const pool = await poolOf(client, 0);
  const error = await failure(client.lease(pool, { wait: 1 }));
  assert.ok(error instanceof WaitEnded && error.last instanceof NoKeyAvailable && error.isTemporary);
  assert.match(error.nextStep, /add keys/);
  await waitFor("an empty queue", async () => (await stateOf(client, pool)).waiting === 0);
});

test("an aborted wait leaves neither a waiter nor a lease", async () => {
  const pool = await poolOf(client, 0);
  const abort = new AbortController();
  const waiting = failure(client.lease(pool, { wait: "10m", signal: abort.signal }));
  await waitFor("the waiter", async () => (await stateOf(client, pool)).waiting === 1);
  abort.abort(new Error("enough"));
  assert.equal(((await waiting) as Error).message, "enough");
  await waitFor("an empty queue", async () => (await stateOf(client, pool)).waiting === 0);
  assert.equal(((await failure(client.lease(pool, { signal: abort.signal }))) as Error).message, "enough");
});

test("a wait continues over a restart of the server, and a lease too", async () => {
  const own = await new Server().start();
  const proxy = await new Proxy().start(own.port);
  try {
    await using behind = new Client({ server: proxy.url });
    const pool = await poolOf(behind, 1);
    const lease = await behind.lease(pool, { ttl: 60 });
    let retries = 0;
    const waiting = behind.lease(pool, { wait: "10m", onRetry: () => (retries += 1) });
    await waitFor("the waiter", async () => (await stateOf(behind, pool)).waiting === 1);
    proxy.upstream = undefined;
    await own.kill();
    proxy.cut();
    await waitFor("a retry", () => retries > 0);
    await own.start();
    proxy.upstream = own.port;
    await waitFor("the waiter again", async () => (await stateOf(behind, pool)).waiting === 1);
    assert.equal(lease.lost, undefined);
    await lease.release();
    assert.ok((await waiting).fencingToken > lease.fencingToken);
  } finally {
    proxy.end();
    await own.end();
  }
});

test("the lost answer of an acquire leaves no second lease, that of a release no error", async () => {
  const proxy = await new Proxy().start(server.port);
  try {
    const behind = new Client({ server: proxy.url });
    const pool = await poolOf(client, 2);
    proxy.loses = /^POST \/v1\/pools\/[^/]+\/leases /;
    const lease = await behind.lease(pool, { wait: 20 });
    assert.equal(proxy.lost, 1);
    assert.equal((await stateOf(client, pool)).leased, 1);
    proxy.loses = /^POST \/v1\/pools\/[^/]+\/leases\/[^/]+\/release /;
    await lease.release();
    assert.equal(proxy.lost, 2);
    assert.equal((await stateOf(client, pool)).available, 2);
    // Without a wait the outcome is asked for, and the lease is released.
    proxy.loses = /^POST \/v1\/pools\/[^/]+\/leases /;
    await behind.lease(pool).then((granted) => granted.release());
    assert.equal((await stateOf(client, pool)).available, 2);
  } finally {
    proxy.end();
  }
});

test("a lease that the server cannot renew ends here no later than there", async () => {
  const own = await new Server().start();
  const lonely = new Client({ server: own.url });
  const pool = await poolOf(lonely, 1);
  const lease = await lonely.lease(pool, { ttl: 2 });
  await own.kill();
  assert.equal((await loss(lease)).end, "not_renewed");
  const error = await failure(lonely.lease(pool));
  assert.ok(error instanceof Unreachable && !error.wasSent && error.nextStep.includes("KEYPEG_SERVER"));
  await own.start();
  await own.end();
});

test("a client that is closed has released its leases", async () => {
  const own = new Client({ server: server.url });
  const pool = await poolOf(client, 2);
  await own.lease(pool);
  await own.lease(pool);
  await own.close();
  assert.equal((await stateOf(client, pool)).available, 2);
});
