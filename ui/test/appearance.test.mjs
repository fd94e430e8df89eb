// Each view on a desktop and on a phone, light and dark: nothing is cut off, axe-core has no serious
// finding, and a screenshot is kept in target/ui-screenshots.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { closeBrowser, DESKTOP, open, PHONE, seriousFindings, Server, shot } from "./support.mjs";

let server;
before(async () => {
  server = await Server.start();
  const pools = [
    ["ci", { lease_ttl_seconds: 600 }, 20],
    ["payments-sandbox", { lease_ttl_seconds: 600, rest_seconds: 20 }, 4],
    ["selenium", { lease_ttl_seconds: 600, keepalive_ttl_seconds: null }, 8],
    ["a-pool-with-a-very-long-name.of-64-characters.0123456789abcdefgh", {}, 0],
  ];
  for (const [pool, policy, count] of pools) {
    await server.call("PUT", `/v1/pools/${pool}`, policy);
    if (count > 0) await server.call("POST", `/v1/pools/${pool}/keys`, { count });
  }
  const acquire = (pool, holder) => server.call("POST", `/v1/pools/${pool}/leases`, { holder });
  for (let index = 0; index < 7; index += 1) await acquire("ci", `build-${index} of pipeline main`);
  for (let index = 0; index < 4; index += 1) await acquire("payments-sandbox", `worker-${index}`);
  for (let index = 0; index < 2; index += 1) {
    const { id } = await acquire("selenium", `e2e-${index}`);
    await server.call("POST", `/v1/pools/selenium/leases/${id}/release`, { quarantine: true, reason: "account locked by the provider" });
  }
  void server.call("POST", "/v1/pools/payments-sandbox/leases", { wait_seconds: 300 }).catch(() => {});
});
after(async () => {
  await closeBrowser();
  await server.stop();
});

const VIEWS = [
  ["overview", "", async (page) => page.locator(".findings").waitFor()],
  ["leases", "#/pools/ci/leases", async (page) => page.locator(".key-table").waitFor()],
  ["keys", "#/pools/selenium/keys", async (page) => page.locator(".key-table").waitFor()],
  ["add", "#/pools/ci/add", async (page) => {
    await page.getByRole("textbox", { name: "Values" }).fill("account-1:secret\n account-2:secret\naccount-3:secret\naccount-3:secret");
    await page.getByText("2 invalid").waitFor();
    await page.getByText("As a command").first().click();
  }],
  ["policy", "#/pools/ci/policy", async (page) => {
    await page.getByRole("textbox", { name: "Rest" }).fill("30");
    await page.getByText("a key is not lent for 30 s").waitFor();
  }],
  ["events", "#/pools/ci/events", async (page) => {
    await page.locator(".event-table").waitFor();
    const lease = await server.call("POST", "/v1/pools/ci/leases", { holder: "nightly", ttl_seconds: 1 });
    await page.locator(".event-table tbody tr").filter({ hasText: String(lease.fencing_token) }).first().waitFor();
  }],
  ["question", "#/pools/ci/leases", async (page) => {
    await page.getByRole("button", { name: /Force-release/ }).first().click();
    await page.getByRole("dialog").waitFor();
  }],
  ["unknown", "#/pools/nowhere/leases", async (page) => page.getByRole("alert").waitFor()],
];

for (const [device, viewport] of [["desktop", DESKTOP], ["phone", PHONE]]) {
  for (const colours of ["light", "dark"]) {
    test(`each view is readable on a ${device} in ${colours} colours`, async () => {
      for (const [name, hash, prepare] of VIEWS) {
        const page = await open(server, { hash, viewport, colours });
        await prepare(page);
        if (name !== "unknown") await page.locator(".chart canvas").first().waitFor();
        await shot(page, `${name}-${device}-${colours}`);
        const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
        assert.equal(wide, 0, `${name}: the page scrolls sideways`);
        assert.deepEqual(await seriousFindings(page), [], name);
        assert.deepEqual(page.faults, [], name);
        await page.context().close();
      }
    });
  }
}

test("the switch of colours overrides the system and is remembered", async () => {
  const page = await open(server, { colours: "light" });
  const ground = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const light = await ground();
  await page.getByLabel("Colours").selectOption("dark");
  assert.notEqual(await ground(), light);
  await page.reload();
  await page.locator(".chart canvas").first().waitFor();
  assert.notEqual(await ground(), light);
  await page.getByLabel("Colours").selectOption("system");
  assert.equal(await ground(), light);
});
