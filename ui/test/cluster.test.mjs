// A server that shares its pools shows the servers and their shards; a server alone shows none.
import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { closeBrowser, open, PHONE, seriousFindings, Server, shot } from "./support.mjs";

let dir, server, other, alone;
before(async () => {
  dir = mkdtempSync(join(tmpdir(), "keypeg-ui-store-"));
  server = await Server.start({ store: `file://${dir}` });
  other = await Server.start({ store: `file://${dir}` });
  alone = await Server.start();
});
after(async () => {
  await closeBrowser();
  await Promise.all([server, other, alone].map((one) => one.stop()));
  rmSync(dir, { recursive: true, force: true });
});

test("the page shows the servers that share the pools, and which shards each of them owns", async () => {
  const page = await open(server);
  const table = page.getByRole("region", { name: "Table of servers" });
  await table.getByText("(this server)").waitFor();
  // The second server has joined, and some server has shards.
  await page.waitForFunction(() => {
    const rows = [...document.querySelectorAll(".servers tbody tr")].map((row) => row.children);
    return rows.length === 2 && rows.some((cells) => /^[0-3]/.test(cells[2].textContent));
  });
  await shot(page, "overview-servers-desktop-light");
  assert.deepEqual(await seriousFindings(page), []);
  assert.deepEqual(page.faults, []);
});

test("the table of servers fits a phone", async () => {
  const page = await open(server, { viewport: PHONE });
  await page.getByRole("region", { name: "Table of servers" }).getByText("(this server)").waitFor();
  const overflow = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  assert.equal(overflow, 0);
  await shot(page, "overview-servers-phone-light");
});

test("a server alone shows no servers", async () => {
  const page = await open(alone);
  await page.getByRole("region", { name: "All pools together" }).waitFor();
  assert.equal(await page.locator(".servers").count(), 0);
  assert.deepEqual(page.faults, []);
});
