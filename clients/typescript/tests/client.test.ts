/** What is no lease: options, errors, keep-alives, verification, listings, and the types of calls. */

import assert from "node:assert/strict";
import { createServer, type Server as HttpServer } from "node:http";
import { once } from "node:events";
import { after, before, test } from "node:test";
import type { AddressInfo } from "node:net";
import * as keypeg from "keypeg";
import { Client, InvalidInput, KeypegError, NoKeyAvailable, Refused, UnexpectedAnswer, UnknownPool } from "keypeg";
import { seconds } from "./node_modules/keypeg/dist/duration.js";
import { Parser } from "./node_modules/keypeg/dist/events.js";
import { Server, poolOf, waitFor } from "./server.js";

const server = new Server();
let client: Client;

before(async () => {
  await server.start();
  client = new Client({ server: server.url });
});
after(() => server.end());

/** A server that gives these answers. */
async function stub(answer: (token: string | undefined) => [number, string, string]): Promise<[string, HttpServer]> {
  const listener = createServer((request, response) => {
    const [status, type, body] = answer(request.headers.authorization);
    response.writeHead(status, { "content-type": type }).end(body);
  });
  listener.listen(0, "127.0.0.1");
  await once(listener, "listening");
  return [`http://127.0.0.1:${(listener.address() as AddressInfo).port}`, listener];
}

test("lengths of time have units, or are seconds", () => {
  const good: [keypeg.Duration, number][] = [[1.5, 1.5], ["500ms", 0.5], ["90s", 90], ["1m30s", 90], ["2h", 7_200], ["7d", 604_800]];
  for (const [given, expected] of good) assert.equal(seconds("wait", given, 0), expected);
  for (const bad of ["", "10", "10 m", "-1s", "1y", "8d", "s", Number.NaN, -1, "1e3s", null, {}, "9".repeat(100)]) {
    assert.throws(() => seconds("wait", bad as string, 0), /^InvalidInput: wait is .*: use 0 to 604800 seconds/, String(bad));
  }
});

test("options that are invalid are refused with their name, before a request is sent", async () => {
  const pool = "ci";
  for (const [options, name] of [[{ wait: "soon" }, "wait"], [{ ttl: 0 }, "ttl"], [{ margin: -1 }, "margin"]] as const) {
    await assert.rejects(client.lease(pool, options), (error) => error instanceof InvalidInput && error.message.startsWith(name));
  }
  for (const name of ["", ".", "..", "a/b", "a b", "%2e", "a?b"]) await assert.rejects(client.lease(name), InvalidInput, name);
  for (const address of ["", "localhost:8000", "ftp://a", "http://user:secret@a", "http://a/?x", "http://a#"]) {
    assert.throws(() => new Client({ server: address }), (error) => error instanceof InvalidInput && !error.message.includes("secret"));
  }
  await assert.rejects(new Client({ server: server.url, token: "a\nb" }).lease(pool), InvalidInput);
});

test("every error code of the document has a class with a next step", async () => {
  const document = (await client.call("get", "/openapi.json")) as unknown as { components: { schemas: { Code: { enum: string[] } } } };
  const codes = document.components.schemas.Code.enum;
  assert.ok(codes.length > 30);
  const steps = new Refused({ code: "new" } as never).nextStep;
  for (const code of codes) {
    const error = Refused.of({ code, status: 400, detail: "detail", request_id: "1" });
    assert.ok(error !== undefined && error.constructor !== Refused && error.nextStep !== steps, code);
    assert.ok(Object.hasOwn(keypeg, error.constructor.name), `${error.constructor.name} is exported`);
  }
  assert.equal(Refused.of({ code: "of_a_newer_server", status: 400, detail: "d" })?.constructor, Refused);
  assert.equal(Refused.of({ code: "constructor", status: 400, detail: "d" })?.constructor, Refused);
  for (const other of [null, 1, "x", [], { code: 1, status: 400, detail: "d" }]) assert.equal(Refused.of(other), undefined);
});

test("a refusal has its code, status, request id and next step", async () => {
  const path = { pool: "nothing" };
  await assert.rejects(client.call("get", "/v1/pools/{pool}", { path }), (error) => {
    assert.ok(error instanceof UnknownPool && error instanceof KeypegError);
    assert.deepEqual([error.code, error.status, error.isTemporary, error.docs], ["unknown_pool", 404, false, "/problems/unknown_pool"]);
    assert.ok(error.requestId.length > 0 && error.nextStep.includes("Create the pool"));
    return true;
  });
});

test("an answer of another server is named as such", async () => {
  for (const [status, type, body] of [[200, "text/html", "<p>"], [502, "text/html", ""], [302, "text/plain", "x"], [404, "application/json", "{}"]] as const) {
    const [url, listener] = await stub(() => [status, type, body]);
    try {
      await assert.rejects(new Client({ server: url }).lease("ci"), (error) => error instanceof UnexpectedAnswer && error.status === status);
    } finally {
      listener.close();
    }
  }
});

test("a token that was replaced is asked for again after a refusal", async () => {
  const problem = JSON.stringify({ code: "unauthorized", status: 401, detail: "d", request_id: "1" });
  const [url, listener] = await stub((token) =>
    token === "Bearer new" ? [200, "application/json", '{"version":"1"}'] : [401, "application/problem+json", problem],
  );
  try {
    const tokens = ["old", "new"];
    const behind = new Client({ server: url, token: () => (tokens.length > 1 ? tokens.shift() : tokens[0]) });
    assert.equal((await behind.call("get", "/version")).version, "1");
    await assert.rejects(new Client({ server: url, token: "old" }).call("get", "/version"), keypeg.Unauthorized);
  } finally {
    listener.close();
  }
});

test("keys are kept alive until the signal is aborted", async () => {
  const pool = await poolOf(client, 0);
  const path = { pool };
  await client.call("put", "/v1/pools/{pool}", { path, body: { keepalive_ttl_seconds: 10 } });
  const { keys } = await client.call("post", "/v1/pools/{pool}/keys", { path, body: { count: 1 } });
  const abort = new AbortController();
  const keeping = client.keepAlive(pool, { signal: abort.signal });
  const ends = new Set<string | null>();
  await waitFor("two keep-alives", async () => {
    const key = await client.call("get", "/v1/pools/{pool}/keys/{id}", { path: { pool, id: keys[0]?.id ?? "" } });
    return ends.add(key.expires_at).size > 2;
  });
  abort.abort();
  await keeping;
  await assert.rejects(client.keepAlive("nothing", { signal: new AbortController().signal }), UnknownPool);
  // Keys that do not exist need no keep-alives.
  await client.keepAlive(pool, { signal: new AbortController().signal, keyIds: ["0000000000000000000000000a"] });
});

test("a service verifies the key that a client sends", async () => {
  const pool = await poolOf(client, 1);
  await using lease = await client.lease(pool, { holder: "job 7" });
  const verification = await client.verify(pool, lease.key);
  assert.equal(verification.lease?.holder, "job 7");
  await lease.release();
  assert.deepEqual(await client.verify(pool, `${pool}-0`), { active: false });
  assert.equal((await client.verify(pool, `${pool}-0`, ["available", "leased"])).state, "available");
});

test("a listing reads all pages", async () => {
  const pool = await poolOf(client, 1_200);
  const ids = new Set<string>();
  for await (const key of client.keys(pool, "available")) ids.add(key.id);
  assert.equal(ids.size, 1_200);
});

test("a key is drained, quarantined and put back", async () => {
  const pool = await poolOf(client, 1);
  const lease = await client.lease(pool);
  const draining = await client.quarantine(pool, lease.keyId, { when: "free", reason: "rotation" });
  assert.deepEqual([draining.state, draining.draining, draining.reason], ["leased", true, "rotation"]);
  await lease.release();
  for await (const key of client.keys(pool, { state: "quarantined" })) assert.equal(key.id, lease.keyId);
  assert.equal((await client.endQuarantine(pool, lease.keyId)).state, "available");
  assert.equal((await client.quarantine(pool, lease.keyId)).state, "quarantined");
  const labels = [];
  for await (const key of client.keys(pool, { label: "no such label" })) labels.push(key);
  assert.deepEqual(labels, []);
});

test("a draining pool grants no key until it is undone", async () => {
  const pool = await poolOf(client, 1);
  const drain = (draining: boolean) => client.call("put", "/v1/pools/{pool}", { path: { pool }, body: { draining } });
  assert.equal((await drain(true)).draining, true);
  await assert.rejects(client.lease(pool, { wait: 60 }), (error: unknown) => {
    assert.ok(error instanceof NoKeyAvailable);
    assert.equal(error.problem.cause, "draining");
    return true;
  });
  assert.equal((await drain(false)).draining, false);
  await (await client.lease(pool)).release();
});

test("an event is read from any pieces of the stream", () => {
  const text = 'id: 1\r\nevent: released\r\ndata: {"key_id":"\u{e4}"}\r\n\r\n: comment\n\ndata: a\ndata: b\n\n';
  const bytes = new TextEncoder().encode(text);
  const expected = [
    { id: "1", name: "released", data: '{"key_id":"\u{e4}"}' },
    { id: "", name: "", data: "a\nb" },
  ];
  for (let size = 1; size <= bytes.length; size++) {
    const parser = new Parser();
    const messages = [];
    for (let at = 0; at < bytes.length; at += size) messages.push(...parser.feed(bytes.subarray(at, at + size)));
    assert.deepEqual(messages, expected, `pieces of ${size}`);
  }
  assert.throws(() => new Parser().feed(new Uint8Array((1 << 20) + 1).fill(97)), RangeError);
});

test("calls have the types of the document", () => {
  // Never runs: it must compile, except the lines that expect an error.
  const types = async () => {
    const pool = await client.call("get", "/v1/pools/{pool}", { path: { pool: "ci" } });
    const waiting: number = pool.waiting;
    const nothing: undefined = await client.call("delete", "/v1/pools/{pool}", { path: { pool: "ci" } });
    // @ts-expect-error: no such path
    await client.call("get", "/v1/pool/{pool}");
    // @ts-expect-error: the path has no such method
    await client.call("post", "/v1/pools/{pool}");
    // @ts-expect-error: the field has another name
    await client.call("put", "/v1/pools/{pool}", { path: { pool: "ci" }, body: { max_hold: 1 } });
    // @ts-expect-error: the answer has no such field
    return [waiting, nothing, pool.wait];
  };
  assert.ok(types);
});
