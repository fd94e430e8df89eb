// One pool: leases, keys, policy and events.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { closeBrowser, open, Server } from "./support.mjs";

let server;
before(async () => (server = await Server.start()));
after(async () => {
  await closeBrowser();
  await server.stop();
});

async function pool(name, policy = {}, count = 0) {
  await server.call("PUT", `/v1/pools/${name}`, policy);
  if (count === 0) return [];
  return (await server.call("POST", `/v1/pools/${name}/keys`, { count })).keys;
}

test("a lease is in the table with its countdown, and a force-release asks first", async () => {
  const [key] = await pool("leases", { lease_ttl_seconds: 3600 }, 1);
  const page = await open(server, { hash: "#/pools/leases/leases" });
  await page.getByText("keypeg acquire --holder job-7 --pool leases").waitFor();
  const lease = await server.call("POST", "/v1/pools/leases/leases", { holder: "job 7" });
  const row = page.locator(".key-table tbody tr", { hasText: key.id });
  await row.getByText("job 7").waitFor();
  await row.getByText(/^59 min \d\d s$/).waitFor();
  assert.ok((await row.textContent()).includes(String(lease.fencing_token)));
  await row.getByRole("button", { name: `Force-release key ${key.id}` }).click();
  const dialog = page.getByRole("dialog", { name: "Force-release this key?" });
  await dialog.getByText("As a command").click();
  await dialog.getByText(`keypeg unblock ${key.id} --pool leases --server ${server.url}`).waitFor();
  await dialog.getByText(`curl -sS -X POST ${server.url}/v1/pools/leases/keys/${key.id}/release`).waitFor();
  await dialog.getByRole("button", { name: "Cancel" }).click();
  assert.equal((await server.call("GET", "/v1/pools/leases")).leased, 1);
  await row.getByRole("button", { name: /Force-release/ }).click();
  await dialog.getByRole("button", { name: "Force-release" }).click();
  await row.waitFor({ state: "detached" });
  assert.equal((await server.call("GET", "/v1/pools/leases")).available, 1);
  assert.deepEqual(page.faults, []);
});

test("keys are filtered by state, found by id, paged, revealed and deleted", async () => {
  const keys = await pool("keys", { keepalive_ttl_seconds: null }, 70);
  const lease = await server.call("POST", "/v1/pools/keys/leases", {});
  await server.call("POST", `/v1/pools/keys/leases/${lease.id}/release`, { quarantine: true, reason: "locked out" });
  const page = await open(server, { hash: "#/pools/keys/keys" });
  const rows = page.locator(".key-table tbody tr");
  const ids = () => page.locator(".key-table tbody th").allTextContents();
  await rows.nth(49).waitFor();
  const firstPage = await ids();
  assert.equal(firstPage.length, 50);
  await page.getByRole("button", { name: "Next" }).click();
  await page.getByText("Page 2").waitFor();
  await rows.nth(19).waitFor();
  await page.waitForFunction(() => document.querySelectorAll(".key-table tbody tr").length === 20);
  const all = [...firstPage, ...(await ids())];
  assert.deepEqual(all.toSorted(), keys.map(({ id }) => id).toSorted());
  await page.getByRole("button", { name: "Previous" }).click();
  await rows.nth(49).waitFor();
  await page.getByLabel("State").selectOption("quarantined");
  await rows.filter({ hasText: "locked out" }).waitFor();
  await page.waitForFunction(() => document.querySelectorAll(".key-table tbody tr").length === 1);
  await page.getByLabel("State").selectOption("");
  const wanted = keys[42];
  await page.getByLabel("Find by key id").fill(wanted.id);
  await page.waitForFunction(() => document.querySelectorAll(".key-table tbody tr").length === 1);
  assert.ok(!(await page.content()).includes(wanted.key), "no value is in the page before it is asked for");
  await page.getByRole("button", { name: `Reveal the value of key ${wanted.id}` }).click();
  await rows.getByText(wanted.key).waitFor();
  await page.getByRole("button", { name: `Hide the value of key ${wanted.id}` }).click();
  assert.ok(!(await page.content()).includes(wanted.key), "the value is hidden again");
  await page.getByRole("button", { name: `Delete key ${wanted.id}` }).click();
  await page.getByRole("dialog", { name: "Delete this key?" }).getByRole("button", { name: "Delete" }).click();
  await page.getByText("No key has this id").waitFor();
  assert.equal((await server.call("GET", "/v1/pools/keys")).total, 69);
  await page.getByLabel("Find by key id").fill("not an id/..");
  await page.getByText("No key has this id").waitFor();
  assert.deepEqual(page.faults, []);
});

test("a value is hidden again by itself when the page is not visible", async () => {
  const [key] = await pool("hidden", {}, 1);
  const page = await open(server, { hash: "#/pools/hidden/keys" });
  await page.getByRole("button", { name: /Reveal/ }).click();
  await page.getByText(key.key).waitFor();
  await page.evaluate(() => {
    Object.defineProperty(document, "hidden", { configurable: true, get: () => true });
    document.dispatchEvent(new Event("visibilitychange"));
  });
  await page.getByText(key.key).waitFor({ state: "detached" });
});

test("generated values are hidden until they are asked for", async () => {
  await pool("generate");
  const page = await open(server, { hash: "#/pools/generate/add" });
  const form = page.getByRole("form", { name: "Generate keys" });
  for (const bad of ["0", "10001", "1.5", "x", ""]) {
    await form.getByLabel("How many").fill(bad);
    assert.ok(await form.getByRole("button", { name: "Generate" }).isDisabled(), bad);
  }
  await form.getByLabel("How many").fill("3");
  await form.getByRole("button", { name: "Generate" }).click();
  await form.getByText("3 keys generated.").waitFor();
  assert.equal(await form.locator(".values").count(), 0);
  await form.getByRole("button", { name: "Show values" }).click();
  const values = await form.locator(".values li").allTextContents();
  assert.equal(values.length, 3);
  assert.ok(values.every((value) => /^[0-9A-Za-z]{20}$/.test(value)), String(values));
  await form.getByRole("button", { name: "Done" }).click();
  assert.ok(!(await page.content()).includes(values[0]));
  assert.equal((await server.call("GET", "/v1/pools/generate")).available, 3);
  assert.deepEqual(page.faults, []);
});

test("a policy shows its effect before it is saved, and a wrong value is not sent", async () => {
  await pool("policy", { lease_ttl_seconds: 60 });
  const page = await open(server, { hash: "#/pools/policy/policy" });
  const form = page.getByRole("form", { name: "Policy" });
  const save = form.getByRole("button", { name: "Save" });
  assert.ok(await save.isDisabled());
  const field = (name) => form.getByRole("textbox", { name });
  await field("Longest lease").fill("forever");
  await form.getByText("A number of 0.001 to 604800.").waitFor();
  assert.ok(await save.isDisabled());
  await field("Longest lease").fill("300");
  await page.getByText("A new lease lasts at most 5 min instead of 1 min.").waitFor();
  await field("Longest hold").fill("10");
  await form.getByText("Not shorter than the longest lease.").waitFor();
  await field("Longest hold").fill("3600");
  await field("Purge without a keep-alive").fill("");
  await page.getByText("Keys are no longer purged.").waitFor();
  await save.click();
  await form.getByText("The policy is changed.").waitFor();
  const now = await server.call("GET", "/v1/pools/policy");
  assert.deepEqual([now.lease_ttl_seconds, now.max_hold_seconds, now.keepalive_ttl_seconds], [300, 3600, null]);
  assert.deepEqual(page.faults, []);
});

test("a pool is deleted only after its name is typed", async () => {
  await pool("gone", {}, 2);
  const page = await open(server, { hash: "#/pools/gone/policy" });
  await page.getByRole("button", { name: "Delete pool" }).click();
  const dialog = page.getByRole("dialog", { name: "Delete the pool gone?" });
  const confirm = dialog.getByRole("button", { name: "Delete pool" });
  await dialog.getByRole("textbox").fill("gon");
  assert.ok(await confirm.isDisabled());
  await dialog.getByRole("textbox").fill("gone");
  await confirm.click();
  await page.getByRole("heading", { name: "Pools", exact: true }).waitFor();
  await assert.rejects(server.call("GET", "/v1/pools/gone"), /404/);
  const unknown = await open(server, { hash: "#/pools/gone/leases" });
  await unknown.getByRole("link", { name: "All pools" }).click();
  await unknown.getByRole("heading", { name: "Pools", exact: true }).waitFor();
});

test("events appear as they happen, and pause and filter hold", async () => {
  await pool("events", {}, 2);
  const page = await open(server, { hash: "#/pools/events/events" });
  const rows = page.locator(".event-table tbody tr");
  await rows.filter({ hasText: "resync" }).waitFor();
  const lease = await server.call("POST", "/v1/pools/events/leases", { holder: "first job" });
  await rows.filter({ hasText: "first job" }).waitFor();
  await page.getByRole("button", { name: "Pause" }).click();
  await server.call("POST", `/v1/pools/events/leases/${lease.id}/release`, {});
  await server.call("POST", "/v1/pools/events/leases", { holder: "second job" });
  await page.getByText(/^Paused; [23] newer/).waitFor();
  assert.equal(await rows.filter({ hasText: "second job" }).count(), 0);
  await page.getByRole("button", { name: "Continue" }).click();
  await rows.filter({ hasText: "second job" }).waitFor();
  await page.getByRole("combobox", { name: "Event" }).selectOption("granted");
  await page.getByLabel("Contains").fill("FIRST");
  await page.waitForFunction(() => document.querySelectorAll(".event-table tbody tr").length === 1);
  assert.match(await rows.first().textContent(), /first job/);
  assert.deepEqual(page.faults, []);
});
