// Many pools and many events: the work and the memory of the page have bounds.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { closeBrowser, open, PATIENCE_MS, Server, shot } from "./support.mjs";

const POOLS = 3_000;
const LANES = 16;

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

test("a list of thousands of pools draws the visible ones alone", async () => {
  await each(POOLS, (index) => server.call("PUT", `/v1/pools/pool-${String(index).padStart(5, "0")}`));
  await server.call("POST", "/v1/pools/pool-02999/keys", { count: 9 });
  const page = await open(server);
  await page.getByText(`${(POOLS + 1).toLocaleString("en")} pools`).waitFor({ timeout: PATIENCE_MS });
  const rows = page.locator(".pool-table tbody tr:not(.spacer)");
  assert.ok((await rows.count()) < 80, `${await rows.count()} rows`);
  const list = page.getByRole("region", { name: "List of pools" });
  await list.evaluate((element) => element.scrollTo(0, element.scrollHeight));
  await list.getByRole("link", { name: "pool-02999" }).waitFor();
  assert.ok((await rows.count()) < 80);
  await list.evaluate((element) => element.scrollTo(0, 0));
  await page.getByRole("columnheader", { name: "Available" }).getByRole("button").click();
  await page.waitForFunction(() => document.querySelector(".pool-table tbody th")?.textContent === "pool-02999");
  await shot(page, "overview-many-desktop-light");
  assert.deepEqual(page.faults, []);
});

test("a flood of events keeps the last ones and counts all", async () => {
  await server.call("PUT", "/v1/pools/flood");
  await server.call("POST", "/v1/pools/flood/keys", { count: 100 });
  const page = await open(server, { hash: "#/pools/flood/events" });
  await page.locator(".event-table tbody tr").filter({ hasText: "resync" }).waitFor();
  const started = Date.now();
  const grants = 1_500;
  await each(grants, async () => {
    const { id } = await server.call("POST", "/v1/pools/flood/leases", {});
    await server.call("POST", `/v1/pools/flood/leases/${id}/release`, {});
  });
  const perSecond = Math.round((2 * grants * 1000) / (Date.now() - started));
  await page.waitForFunction((least) => {
    const text = document.querySelector(".tools p")?.textContent ?? "";
    return Number(/([\d,]+) since/.exec(text)?.[1]?.replaceAll(",", "")) >= least;
  }, 2 * grants);
  assert.ok((await page.locator(".event-table tbody tr").count()) <= 200);
  console.log(`# ${perSecond} events per second`);
  await shot(page, "events-flood-desktop-light");
  assert.deepEqual(page.faults, []);
});
