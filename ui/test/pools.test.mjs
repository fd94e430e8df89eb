// The first screen: all pools, what is wrong, and the first steps.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { closeBrowser, open, PATIENCE_MS, Server } from "./support.mjs";

let server;
before(async () => (server = await Server.start()));
after(async () => {
  await closeBrowser();
  await server.stop();
});

const row = (page, pool) => page.locator(".pool-table tbody tr", { has: page.getByRole("link", { name: pool, exact: true }) });

test("an empty server shows the first command", async () => {
  const empty = await Server.start();
  try {
    const page = await open(empty);
    await page.getByRole("heading", { name: "No keys yet" }).waitFor();
    await page.getByText(`keypeg generate -n 3 --server ${empty.url}`).waitFor();
    await empty.call("POST", "/v1/pools/default/keys", { count: 3 });
    await page.getByRole("heading", { name: "No keys yet" }).waitFor({ state: "detached" });
    assert.deepEqual(page.faults, []);
  } finally {
    await empty.stop();
  }
});

test("each pool has a bar, its counts follow, and what is wrong is on top", async () => {
  await server.call("PUT", "/v1/pools/ci", { lease_ttl_seconds: 600 });
  await server.call("POST", "/v1/pools/ci/keys", { count: 2 });
  const page = await open(server);
  await row(page, "ci").getByRole("img", { name: "ci: 2 available, 0 leased, 0 resting, 0 quarantined" }).waitFor();
  const first = await server.call("POST", "/v1/pools/ci/leases", {});
  await server.call("POST", `/v1/pools/ci/leases/${first.id}/release`, { quarantine: true, reason: "locked" });
  await server.call("POST", "/v1/pools/ci/leases", {});
  const waits = server.call("POST", "/v1/pools/ci/leases", { wait_seconds: 300 }).catch(() => {});
  await row(page, "ci").getByRole("img", { name: "ci: 0 available, 1 leased, 0 resting, 1 quarantined" }).waitFor();
  const findings = page.getByRole("region", { name: "What is wrong" });
  await findings.getByText("1 request waits: none of 2 keys is available.").waitFor();
  await findings.getByText("1 key is quarantined").waitFor();
  await page.getByRole("region", { name: "What ends next" }).getByRole("link", { name: "ci" }).first().waitFor();
  const grants = page.locator("figure", { hasText: "Grants" });
  await grants.getByText(/^2 in /).waitFor();
  await findings.getByRole("link", { name: "ci" }).first().click();
  await page.getByRole("heading", { name: "ci", exact: true }).waitFor();
  await server.call("POST", "/v1/pools/ci/keys", { count: 1 });
  await waits;
  assert.deepEqual(page.faults, []);
  assert.deepEqual([...page.requestsTo], [new URL(server.url).host], "it asks this server alone");
});

test("pools are filtered by name and ordered by each column", async () => {
  for (const [pool, count] of [["sort-a", 3], ["sort-b", 1], ["sort-c", 2]]) {
    await server.call("PUT", `/v1/pools/${pool}`);
    await server.call("POST", `/v1/pools/${pool}/keys`, { count });
  }
  const page = await open(server);
  await page.getByLabel("Filter by name").fill("sort-");
  const names = () => page.locator(".pool-table tbody th").allTextContents();
  await page.getByText("3 of ").waitFor();
  assert.deepEqual(await names(), ["sort-a", "sort-b", "sort-c"]);
  const heading = page.getByRole("columnheader", { name: "Available" });
  await heading.getByRole("button").click();
  assert.deepEqual(await names(), ["sort-a", "sort-c", "sort-b"]);
  assert.equal(await heading.getAttribute("aria-sort"), "descending");
  await heading.getByRole("button").click();
  assert.deepEqual(await names(), ["sort-b", "sort-c", "sort-a"]);
  await page.getByLabel("Filter by name").fill("no such pool");
  await page.getByText("0 of ").waitFor();
  assert.deepEqual(page.faults, []);
});

test("a pool is created, and its name is checked first", async () => {
  const page = await open(server);
  await page.getByRole("button", { name: "Create pool" }).click();
  const dialog = page.getByRole("dialog", { name: "Create a pool" });
  await dialog.getByLabel("Name").fill("Not a name");
  await dialog.getByRole("button", { name: "Create" }).click();
  await dialog.getByRole("alert").waitFor();
  await dialog.getByLabel("Name").fill("default");
  await dialog.getByRole("button", { name: "Create" }).click();
  await dialog.getByRole("alert").filter({ hasText: /exist/i }).waitFor();
  await dialog.getByLabel("Name").fill("made-here");
  await dialog.getByRole("button", { name: "Create" }).click();
  await page.getByRole("heading", { name: "made-here" }).waitFor();
  assert.equal((await server.call("GET", "/v1/pools/made-here")).total, 0);
  assert.deepEqual(page.faults, []);
});

test("a server that goes away and comes back needs no reload", async () => {
  const page = await open(server);
  await row(page, "default").waitFor();
  await page.route("**/v1/**", (route) => route.abort());
  await page.getByText("The server does not answer.").first().waitFor();
  // What was read last stays in view.
  assert.ok(await row(page, "default").isVisible());
  await page.unroute("**/v1/**");
  await page.getByText("The server does not answer.").first().waitFor({ state: "detached", timeout: PATIENCE_MS });
});
