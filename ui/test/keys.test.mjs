// The actions on one key: label, quarantine, drain, and the way back; and the drain of a pool.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { closeBrowser, DESKTOP, open, PHONE, seriousFindings, Server, shot } from "./support.mjs";

let server;
before(async () => (server = await Server.start()));
after(async () => {
  await closeBrowser();
  await server.stop();
});

async function pool(name, count) {
  await server.call("PUT", `/v1/pools/${name}`, { lease_ttl_seconds: 3600 });
  return (await server.call("POST", `/v1/pools/${name}/keys`, { count })).keys;
}

function rowOf(page, id) {
  return page.locator(".key-table tbody tr", { hasText: id });
}

test("a label is set, shown, found, and removed", async () => {
  const [key, other] = await pool("labels", 2);
  await server.call("PATCH", `/v1/pools/labels/keys/${other.id}`, { label: "account 2" });
  const page = await open(server, { hash: "#/pools/labels/keys" });
  await rowOf(page, other.id).getByText("account 2").waitFor();
  await page.getByRole("button", { name: `Label key ${key.id}` }).click();
  const dialog = page.getByRole("dialog", { name: "Label this key" });
  await dialog.getByLabel("Label").fill("-n it's 1");
  await dialog.getByText("As a command").click();
  await dialog.getByText(`keypeg label --pool labels --server ${server.url} -- ${key.id} '-n it'\\''s 1'`).waitFor();
  await dialog.getByText(`curl -sS -X PATCH ${server.url}/v1/pools/labels/keys/${key.id}`).waitFor();
  await dialog.getByRole("button", { name: "Save" }).click();
  await rowOf(page, key.id).getByText("-n it's 1").waitFor();
  assert.equal((await server.call("GET", `/v1/pools/labels/keys/${key.id}`)).label, "-n it's 1");
  await page.getByLabel("Find by label").fill("account 2");
  await rowOf(page, key.id).waitFor({ state: "detached" });
  await rowOf(page, other.id).waitFor();
  await page.getByRole("button", { name: `Label key ${other.id}` }).click();
  await dialog.getByLabel("Label").fill("");
  await dialog.getByText("As a command").click();
  await dialog.getByText(`keypeg label ${other.id} --remove --pool labels`).waitFor();
  await dialog.getByRole("button", { name: "Save" }).click();
  await page.getByText("No key has this label.").waitFor();
  assert.equal((await server.call("GET", `/v1/pools/labels/keys/${other.id}`)).label, null);
  assert.deepEqual(page.faults, []);
});

test("a label is found among more keys than the server examines for one page", async () => {
  const keys = await pool("many", 9_000);
  const { id } = (await server.call("GET", "/v1/pools/many/keys?limit=1")).keys[0];
  const last = keys.findLast((key) => key.id !== id);
  for (const wanted of [id, last.id]) await server.call("PATCH", `/v1/pools/many/keys/${wanted}`, { label: "the one" });
  const page = await open(server, { hash: "#/pools/many/keys" });
  await page.locator(".key-table tbody tr").nth(49).waitFor();
  const found = new Set();
  await page.getByLabel("Find by label").fill("the one");
  for (let step = 0; step < 4 && found.size < 2; step += 1) {
    await page.waitForFunction(() => [...document.querySelectorAll(".key-table .label")].some((cell) => cell.textContent === "the one"));
    for (const text of await page.locator(".key-table tbody th").allTextContents()) found.add(text);
    if (found.size < 2) await page.getByRole("button", { name: "Next" }).click();
  }
  assert.deepEqual([...found].toSorted(), [id, last.id].toSorted());
  await page.getByLabel("Find by label").fill("no key has this");
  await page.getByText(/^No key (has this label|of the pages read)/).waitFor();
  assert.deepEqual(page.faults, []);
});

test("a leased key is drained, the drain is cancelled, and a quarantined key is put back", async () => {
  const [key] = await pool("drains", 1);
  const lease = await server.call("POST", "/v1/pools/drains/leases", { holder: "job 7" });
  const page = await open(server, { hash: "#/pools/drains/leases" });
  const state = () => server.call("GET", `/v1/pools/drains/keys/${key.id}`);
  const row = rowOf(page, key.id);
  const ask = page.getByRole("dialog", { name: "Quarantine this key?" });
  await row.getByRole("button", { name: `Quarantine key ${key.id}` }).click();
  await ask.getByText("As a command").click();
  await ask.getByText(`keypeg quarantine ${key.id} --when free --pool drains --server ${server.url}`).waitFor();
  await ask.getByRole("button", { name: "Cancel" }).click();
  assert.equal((await state()).draining, false, "it asks first");
  await row.getByRole("button", { name: /^Quarantine/ }).click();
  await ask.getByLabel("Reason").fill("new password");
  await ask.getByRole("button", { name: "Drain" }).click();
  await row.getByText("draining: new password").waitFor();
  await row.getByText("job 7").waitFor();
  await page.getByText(/1 of them draining/).waitFor();
  await row.getByRole("button", { name: `Cancel drain of key ${key.id}` }).click();
  await page.getByRole("dialog").getByText("As a command").click();
  await page.getByRole("dialog").getByText(`keypeg quarantine ${key.id} --undo --pool drains`).waitFor();
  await page.getByRole("dialog").getByRole("button", { name: "Cancel drain" }).click();
  await row.getByText("draining").waitFor({ state: "detached" });
  assert.deepEqual([(await state()).state, (await state()).draining], ["leased", false]);

  const keys = await open(server, { hash: "#/pools/drains/keys" });
  const item = rowOf(keys, key.id);
  await item.getByRole("button", { name: /^Quarantine/ }).click();
  const again = keys.getByRole("dialog", { name: "Quarantine this key?" });
  await again.getByLabel(/Now: the lease ends/).check();
  await again.getByRole("button", { name: "Quarantine" }).click();
  await item.getByText("quarantined").waitFor();
  await assert.rejects(server.call("POST", `/v1/pools/drains/leases/${lease.id}/renew`, {}), /410/);
  await item.getByRole("button", { name: `Put back key ${key.id}` }).click();
  await keys.getByRole("dialog", { name: "Put this key back?" }).getByRole("button", { name: "Put back" }).click();
  await item.getByText("available").waitFor();
  assert.deepEqual([...page.faults, ...keys.faults], []);
});

test("the filter shows draining keys alone", async () => {
  const keys = await pool("filter", 5);
  for (let index = 0; index < 3; index += 1) await server.call("POST", "/v1/pools/filter/leases", {});
  const leased = (await server.call("GET", "/v1/pools/filter/keys?state=leased")).keys;
  await server.call("POST", `/v1/pools/filter/keys/${leased[1].id}/quarantine`, { when: "free" });
  const page = await open(server, { hash: "#/pools/filter/keys" });
  await page.locator(".key-table tbody tr").nth(keys.length - 1).waitFor();
  await page.getByLabel("State").selectOption("draining");
  await page.waitForFunction(() => document.querySelectorAll(".key-table tbody tr").length === 1);
  await rowOf(page, leased[1].id).waitFor();
  await server.call("DELETE", `/v1/pools/filter/keys/${leased[1].id}/quarantine`);
  await page.getByText("No key is draining.").waitFor();
  assert.deepEqual(page.faults, []);
});

test("a pool is drained after a question, and the banner undoes it", async () => {
  await pool("off", 2);
  await server.call("PUT", "/v1/pools/off", { max_hold_seconds: 86_400 });
  const lease = await server.call("POST", "/v1/pools/off/leases", { holder: "job 7" });
  const page = await open(server, { hash: "#/pools/off/policy" });
  await page.getByRole("button", { name: "Drain pool" }).click();
  const dialog = page.getByRole("dialog", { name: "Drain the pool off?" });
  await dialog.getByText("As a command").click();
  await dialog.getByText(`keypeg pool drain off --server ${server.url}`).waitFor();
  await dialog.getByText('{"draining":true}').waitFor();
  await dialog.getByRole("button", { name: "Cancel" }).click();
  assert.equal((await server.call("GET", "/v1/pools/off")).draining, false, "it asks first");
  await page.getByRole("button", { name: "Drain pool" }).click();
  await dialog.getByRole("button", { name: "Drain pool" }).click();
  await page.getByText("The pool grants no key; 1 lease runs on.").waitFor();
  await assert.rejects(server.call("POST", "/v1/pools/off/leases", {}), /draining/);
  await server.call("POST", `/v1/pools/off/leases/${lease.id}/renew`, {});
  await looksRight(page, "pool-draining-desktop-light");

  const phone = await open(server, { viewport: PHONE, colours: "dark" });
  await phone.locator(".findings").getByText("The pool is draining and grants no key; 1 lease runs on.").waitFor();
  await phone.locator(".findings").getByRole("link", { name: "off", exact: true }).click();
  await phone.getByRole("button", { name: "Undo the drain" }).first().click();
  await phone.getByRole("dialog").getByText("As a command").click();
  await phone.getByRole("dialog").getByText("keypeg pool drain off --undo").waitFor();
  await looksRight(phone, "question-undo-drain-phone-dark");
  await phone.getByRole("dialog").getByRole("button", { name: "Undo the drain" }).click();
  await phone.getByText("The pool grants no key").waitFor({ state: "detached" });
  await server.call("POST", "/v1/pools/off/leases", {});
  assert.deepEqual([...page.faults, ...phone.faults], []);
});

for (const [device, viewport] of [["desktop", DESKTOP], ["phone", PHONE]]) {
  for (const colours of ["light", "dark"]) {
    test(`the questions are readable on a ${device} in ${colours} colours`, async () => {
      const name = `look-${device}-${colours}`;
      const keys = await pool(name, 4);
      for (const [index, { id }] of keys.entries()) await server.call("PATCH", `/v1/pools/${name}/keys/${id}`, { label: `account ${index + 1} of team payments` });
      for (let index = 0; index < 2; index += 1) await server.call("POST", `/v1/pools/${name}/leases`, { holder: `build-${index} of pipeline main` });
      const [leased] = (await server.call("GET", `/v1/pools/${name}/keys?state=leased`)).keys;
      const [free] = (await server.call("GET", `/v1/pools/${name}/keys?state=available`)).keys;
      await server.call("POST", `/v1/pools/${name}/keys/${leased.id}/quarantine`, { when: "free", reason: "the password changes" });
      await server.call("POST", `/v1/pools/${name}/keys/${free.id}/quarantine`, { reason: "the login fails" });
      for (const tab of ["keys", "leases"]) {
        const page = await open(server, { hash: `#/pools/${name}/${tab}`, viewport, colours });
        await page.locator(".key-table .draining").waitFor();
        await looksRight(page, `keys-labelled-${tab}-${device}-${colours}`);
        for (const [action, id] of [["Quarantine", null], ["Label", leased.id]]) {
          await page.getByRole("button", { name: id === null ? /^Quarantine key/ : `${action} key ${id}` }).first().click();
          await page.getByRole("dialog").getByText("As a command").click();
          await looksRight(page, `question-${action.toLowerCase()}-${tab}-${device}-${colours}`);
          await page.keyboard.press("Escape");
        }
        await page.context().close();
      }
    });
  }
}

async function looksRight(page, name) {
  await shot(page, name);
  const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  assert.equal(wide, 0, `${name}: the page scrolls sideways`);
  assert.deepEqual(await seriousFindings(page), [], name);
  assert.deepEqual(page.faults, [], name);
}
