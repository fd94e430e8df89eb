// Everything by the keyboard alone.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { closeBrowser, open, Server } from "./support.mjs";

let server;
before(async () => {
  server = await Server.start();
  await server.call("PUT", "/v1/pools/ci", { lease_ttl_seconds: 3600 });
  await server.call("POST", "/v1/pools/ci/keys", { count: 1 });
});
after(async () => {
  await closeBrowser();
  await server.stop();
});

/** Presses Tab until the focus is on the element of this name. */
async function tabTo(page, wanted) {
  const names = [];
  for (let step = 0; step < 80; step += 1) {
    await page.keyboard.press("Tab");
    const { name, ring } = await page.evaluate(() => {
      const element = document.activeElement;
      const label = element?.labels?.[0]?.textContent ?? "";
      return {
        name: element?.getAttribute("aria-label") ?? (label || element?.textContent) ?? "",
        ring: element && element !== document.body ? getComputedStyle(element).outlineStyle : "solid",
      };
    });
    assert.notEqual(ring, "none", `no focus ring on ${name}`);
    if (wanted.test(name.trim())) return;
    names.push(name.trim().slice(0, 30));
  }
  assert.fail(`no way to ${wanted} by Tab: ${names.join(" | ")}`);
}

/** Waits until the focus is on the element of this name. */
async function focusOn(page, name, reason) {
  const named = (wanted) => {
    const element = document.activeElement;
    return element !== document.body && (element?.getAttribute("aria-label") ?? element?.textContent) === wanted;
  };
  await page.waitForFunction(named, name).catch(async () => {
    const found = await page.evaluate(() => document.activeElement?.outerHTML.slice(0, 80));
    assert.fail(`the focus is on ${found}, not on ${name}: ${reason}`);
  });
}

/** Notes each element that gets the focus from now on. Returns a function that returns their texts. */
async function notedFocus(page) {
  await page.evaluate(() => {
    globalThis.focused = [];
    document.addEventListener("focusin", ({ target }) => globalThis.focused.push(target.textContent));
  });
  return () => page.evaluate(() => globalThis.focused);
}

test("from the first screen to a force-release without a pointer", async () => {
  const page = await open(server);
  await page.locator(".pool-table").getByRole("link", { name: "ci" }).waitFor();
  await tabTo(page, /^Skip to the content$/);
  await page.keyboard.press("Enter");
  assert.equal(await page.evaluate(() => document.activeElement?.id), "content");
  await tabTo(page, /^ci$/);
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { name: "ci", exact: true }).waitFor();
  await server.call("POST", "/v1/pools/ci/leases", { holder: "job" });
  await page.locator(".key-table").getByText("job").waitFor();
  await tabTo(page, /^Force-release key/);
  const focused = await page.evaluate(() => document.activeElement?.getAttribute("aria-label"));
  await page.keyboard.press("Enter");
  await page.getByRole("dialog").waitFor();
  await page.keyboard.press("Escape");
  await page.getByRole("dialog").waitFor({ state: "detached" });
  assert.equal(await page.evaluate(() => document.activeElement?.getAttribute("aria-label")), focused, "the focus returns");
  await page.keyboard.press("Enter");
  await page.getByRole("dialog").waitFor();
  await tabTo(page, /^Force-release$/);
  await page.keyboard.press("Space");
  await page.getByText("No key is leased.").waitFor();
  await page.getByRole("dialog").waitFor({ state: "detached" });
  assert.equal((await server.call("GET", "/v1/pools/ci")).leased, 0);
  await tabTo(page, /^Policy$/);
  await page.keyboard.press("Enter");
  // Before the tab is shown, Tab would go into the view that it replaces.
  await page.getByLabel(/^Rest/).waitFor();
  await tabTo(page, /^Rest/);
  await page.keyboard.type("5");
  await page.keyboard.press("Enter");
  await page.getByText("The policy is changed.").waitFor();
  assert.equal((await server.call("GET", "/v1/pools/ci")).rest_seconds, 5);
  assert.deepEqual(page.faults, []);
});

test("a key is labelled, drained and put back without a pointer", async () => {
  await server.call("PUT", "/v1/pools/keys", { lease_ttl_seconds: 3600 });
  const [{ id }] = (await server.call("POST", "/v1/pools/keys/keys", { count: 1 })).keys;
  const lease = await server.call("POST", "/v1/pools/keys/leases", {});
  const page = await open(server, { hash: "#/pools/keys/keys" });
  await page.locator(".key-table").getByText(id).waitFor();
  await tabTo(page, /^Label key/);
  await page.keyboard.press("Enter");
  await page.getByRole("dialog").waitFor();
  await tabTo(page, /^Label/);
  await page.keyboard.type("account 1");
  await page.keyboard.press("Enter");
  await page.locator(".key-table").getByText("account 1").waitFor();
  await page.evaluate(() => document.activeElement?.blur());
  await tabTo(page, /^Quarantine key/);
  await page.keyboard.press("Enter");
  await page.getByRole("dialog").waitFor();
  await tabTo(page, /^When the lease ends/);
  await tabTo(page, /^Drain$/);
  await page.keyboard.press("Enter");
  await page.locator(".key-table .draining").waitFor();
  await server.call("POST", `/v1/pools/keys/leases/${lease.id}/release`, {});
  await page.getByRole("button", { name: /^Put back/ }).waitFor();
  await page.evaluate(() => document.activeElement?.blur());
  await tabTo(page, /^Put back key/);
  await page.keyboard.press("Enter");
  await page.getByRole("dialog").waitFor();
  await tabTo(page, /^Put back$/);
  await page.keyboard.press("Space");
  await page.getByRole("dialog").waitFor({ state: "detached" });
  assert.equal((await server.call("GET", "/v1/pools/keys")).available, 1);
  assert.deepEqual(page.faults, []);
});

test("a pool is drained and the drain is undone without a pointer", async () => {
  await server.call("PUT", "/v1/pools/drained", { lease_ttl_seconds: 3600 });
  await server.call("POST", "/v1/pools/drained/keys", { count: 1 });
  const draining = async () => (await server.call("GET", "/v1/pools/drained")).draining;
  const page = await open(server, { hash: "#/pools/drained/policy" });
  await page.getByText("Drain pool", { exact: true }).waitFor();
  await tabTo(page, /^Drain pool$/);
  await page.keyboard.press("Enter");
  await page.getByRole("dialog").waitFor();
  const focused = await notedFocus(page);
  await page.keyboard.press("Escape");
  await page.getByRole("dialog").waitFor({ state: "detached" });
  assert.equal(await draining(), false, "Escape drains nothing");
  assert.equal(await page.evaluate(() => document.activeElement?.textContent), "Drain pool", "the focus returns");
  assert.deepEqual(await focused(), ["Drain pool"], "it is nowhere else in between");
  await page.keyboard.press("Space");
  await page.getByRole("dialog").waitFor();
  await tabTo(page, /^Drain pool$/);
  await page.keyboard.press("Enter");
  const banner = page.locator(".banner");
  await banner.getByText("The pool grants no key; no lease runs.").waitFor();
  assert.equal(await draining(), true);
  // The banner stands before the tabs of the pool, so from the top of the page it is reached first.
  await page.evaluate(() => document.activeElement?.blur());
  await tabTo(page, /^Undo the drain$/);
  assert.ok(await page.evaluate(() => document.activeElement?.closest(".banner") !== null), "the banner has the first button");
  await page.keyboard.press("Enter");
  await page.getByRole("dialog").waitFor();
  await tabTo(page, /^Undo the drain$/);
  await page.keyboard.press("Space");
  await banner.waitFor({ state: "detached" });
  assert.equal(await draining(), false);
  await focusOn(page, "drained", "the banner has gone with the button that had the focus");
  await tabTo(page, /^Leases$/);
  // The banner also goes when the drain is undone elsewhere, with a question that is open.
  await server.call("PUT", "/v1/pools/drained", { draining: true });
  await banner.getByRole("button", { name: "Undo the drain" }).focus();
  await page.keyboard.press("Enter");
  await page.getByRole("dialog").waitFor();
  await server.call("PUT", "/v1/pools/drained", { draining: false });
  await banner.waitFor({ state: "detached" });
  await focusOn(page, "drained", "the banner has gone with its question");
  assert.deepEqual(page.faults, []);
});

test("the focus stays near a row that leaves a table", async () => {
  await server.call("PUT", "/v1/pools/rows", { lease_ttl_seconds: 3600 });
  await server.call("POST", "/v1/pools/rows/keys", { count: 2 });
  for (const holder of ["one", "two"]) await server.call("POST", "/v1/pools/rows/leases", { holder });
  const page = await open(server, { hash: "#/pools/rows/leases" });
  await page.locator(".key-table").getByText("two").waitFor();
  const release = async () => {
    await tabTo(page, /^Force-release key/);
    await page.keyboard.press("Enter");
    await page.getByRole("dialog").waitFor();
    await tabTo(page, /^Force-release$/);
    await page.keyboard.press("Enter");
  };
  await release();
  await focusOn(page, "Table of keys", "the table stays");
  await release();
  await focusOn(page, "rows", "the last row has gone with the table");
  assert.deepEqual(page.faults, []);
});

test("a question whose row has gone gives the focus to the table around the row", async () => {
  await server.call("PUT", "/v1/pools/gone", { lease_ttl_seconds: 3600 });
  await server.call("POST", "/v1/pools/gone/keys", { count: 2 });
  await server.call("POST", "/v1/pools/gone/leases", { holder: "one" });
  const lease = await server.call("POST", "/v1/pools/gone/leases", { holder: "two" });
  const page = await open(server, { hash: "#/pools/gone/leases" });
  await page.locator(".key-table").getByText("two").waitFor();
  await page.getByRole("button", { name: `Force-release key ${lease.key_id}` }).focus();
  await page.keyboard.press("Enter");
  await page.getByRole("dialog").waitFor();
  await server.call("POST", `/v1/pools/gone/leases/${lease.id}/release`, {});
  await page.locator(".key-table").getByText("two").waitFor({ state: "detached" });
  await page.keyboard.press("Escape");
  await page.getByRole("dialog").waitFor({ state: "detached" });
  await focusOn(page, "Table of keys", "the table stays");
  assert.deepEqual(page.faults, []);
});

test("the focus stays inside a question", async () => {
  const page = await open(server);
  await page.getByRole("button", { name: "Create pool" }).focus();
  await page.keyboard.press("Enter");
  await page.getByRole("dialog").waitFor();
  for (let step = 0; step < 12; step += 1) {
    await page.keyboard.press("Tab");
    const inside = await page.evaluate(() => document.activeElement === document.body || document.querySelector("dialog")?.contains(document.activeElement));
    assert.ok(inside);
  }
});
