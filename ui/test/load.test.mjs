// Ten thousand pools, a million keys and many events: the elements, the memory and the requests of the
// page have bounds. The bounds are numbers of things, not times, so a slow machine changes none.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { after, before, test } from "node:test";
import { promisify } from "node:util";
import { binary, closeBrowser, open, PATIENCE_MS, Server, shot } from "./support.mjs";

const run = promisify(execFile);

/** With the pool `default`, these are as many as a server has by default. */
const POOLS = 9_999;
const LAST = `pool-${String(POOLS - 1).padStart(5, "0")}`;
const BATCHES = 100;
const BATCH = 10_000;
const LANES = 16;
/** The most elements of a view: a row of a table has about 20, and a view draws at most 200 rows. */
const ELEMENTS_MAX = 6_000;
/** The most memory of the scripts: 10 000 pools take about 10 MiB. */
const HEAP_BYTES_MAX = 64 << 20;
/** The most requests at once: one of each kind that a view polls, and one stream of events. */
const IN_FLIGHT_MAX = 6;

let server;
before(async () => (server = await Server.start()));
after(async () => {
  await closeBrowser();
  await server.stop();
});

/** Runs a task for each number below `count`, some at a time. */
async function each(count, task) {
  let next = 0;
  const lane = async () => {
    while (next < count) await task(next++);
  };
  await Promise.all(Array.from({ length: LANES }, lane));
}

/** Counts the requests of a page to the API, and the most of them at once. */
function watchRequests(page) {
  const seen = { paths: [], now: 0, most: 0 };
  const isApi = (request) => new URL(request.url()).pathname.startsWith("/v1/");
  page.on("request", (request) => {
    if (!isApi(request)) return;
    seen.paths.push(new URL(request.url()).pathname);
    seen.now += 1;
    seen.most = Math.max(seen.most, seen.now);
  });
  for (const end of ["requestfinished", "requestfailed"]) page.on(end, (request) => isApi(request) && (seen.now -= 1));
  return seen;
}

/** Returns the number of elements, and the memory that the scripts use after a garbage collection. */
async function sizeOf(page) {
  const session = await page.context().newCDPSession(page);
  await session.send("HeapProfiler.collectGarbage");
  const { usedSize } = await session.send("Runtime.getHeapUsage");
  await session.detach();
  return { elements: await page.evaluate(() => document.querySelectorAll("*").length), heap: usedSize };
}

function assertBounded({ elements, heap }, name) {
  console.log(`# ${name}: ${elements} elements, ${(heap / (1 << 20)).toFixed(1)} MiB`);
  assert.ok(elements <= ELEMENTS_MAX, `${name}: ${elements} elements`);
  assert.ok(heap <= HEAP_BYTES_MAX, `${name}: ${heap} bytes of memory`);
}

test("ten thousand pools and a million keys: the page draws and requests a bounded part", async () => {
  await each(POOLS, (index) => server.call("PUT", `/v1/pools/pool-${String(index).padStart(5, "0")}`, { keepalive_ttl_seconds: null }));
  await each(BATCHES, () => server.call("POST", `/v1/pools/${LAST}/keys`, { count: BATCH }));
  const page = await open(server);
  const seen = watchRequests(page);
  await page.reload();
  await page.getByText(`${(POOLS + 1).toLocaleString("en")} pools`).waitFor({ timeout: PATIENCE_MS });
  const rows = page.locator(".pool-table tbody tr:not(.spacer)");
  assert.ok((await rows.count()) < 80, `${await rows.count()} rows`);
  const list = page.getByRole("region", { name: "List of pools" });
  await list.evaluate((element) => element.scrollTo(0, element.scrollHeight));
  await list.getByRole("link", { name: LAST }).waitFor();
  assert.ok((await rows.count()) < 80);
  await list.evaluate((element) => element.scrollTo(0, 0));
  await page.getByRole("columnheader", { name: "Available" }).getByRole("button").click();
  await page.waitForFunction((last) => document.querySelector(".pool-table tbody th")?.textContent === last, LAST);
  await page.getByText((BATCHES * BATCH).toLocaleString("en")).first().waitFor();
  await shot(page, "overview-many-desktop-light");
  const first = await sizeOf(page);
  assertBounded(first, "overview");
  // A further whole listing in turns leaves no more behind than the first.
  const turns = () => seen.paths.filter((path) => path === "/v1/pools").length;
  const before = turns();
  await until(() => turns() >= before + Math.ceil(POOLS / 1_000));
  const second = await sizeOf(page);
  assertBounded(second, "overview after a further listing");
  assert.ok(second.heap < first.heap * 1.5 + (4 << 20), `${first.heap}, then ${second.heap} bytes`);

  await page.goto(`${server.url}/#/pools/${LAST}/keys`);
  await page.locator(".key-table tbody tr").nth(49).waitFor();
  assert.equal(await page.locator(".key-table tbody tr").count(), 50);
  assertBounded(await sizeOf(page), "keys");
  await shot(page, "keys-many-desktop-light");
  assert.ok(seen.most <= IN_FLIGHT_MAX, `${seen.most} requests at once`);
  assert.deepEqual(page.faults, []);
});

/** Waits for something that this process observes. */
async function until(holds) {
  const end = Date.now() + PATIENCE_MS;
  while (!holds()) {
    assert.ok(Date.now() < end, "it did not happen");
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

test("a flood of events keeps the last ones and counts all", async () => {
  // On a slow machine the flood lasts longer than a lease and a key of the default policy.
  await server.call("PUT", "/v1/pools/default", { lease_ttl_seconds: 3600, keepalive_ttl_seconds: null });
  await server.call("POST", "/v1/pools/default/keys", { count: 100 });
  const page = await open(server, { hash: "#/pools/default/events" });
  await page.locator(".event-table tbody tr").filter({ hasText: "resync" }).waitFor();
  const pool = ["--server", server.url, "--pool", "default", "--output", "json"];
  const load = ["bench", "acquire-release", "--connections", "16", "--for", "6s", "--rate", "1000"];
  const flood = async (before) => {
    // Each request is one event.
    const report = JSON.parse((await run(binary, [...load, ...pool])).stdout);
    const sent = Date.now();
    assert.deepEqual([report.broken, report.refused], [0, {}]);
    await page.waitForFunction((least) => {
      const text = document.querySelector(".tools p")?.textContent ?? "";
      return Number(/([\d,]+) since/.exec(text)?.[1]?.replaceAll(",", "")) >= least;
    }, before + report.requests);
    console.log(`# ${Math.round(report.requests_per_second)} events per second, counted ${Date.now() - sent} ms after the last`);
    assert.ok((await page.locator(".event-table tbody tr").count()) <= 200);
    const size = await sizeOf(page);
    assertBounded(size, "events");
    return { ...size, events: report.requests };
  };
  const first = await flood(0);
  const second = await flood(first.events);
  assert.ok(second.heap < first.heap * 1.5 + (4 << 20), `${first.heap}, then ${second.heap} bytes`);
  await shot(page, "events-flood-desktop-light");
  assert.deepEqual(page.faults, []);
});
