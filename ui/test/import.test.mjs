// An import: each line is checked before any value is sent.
import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { closeBrowser, open, Server } from "./support.mjs";

let server;
before(async () => (server = await Server.start()));
after(async () => {
  await closeBrowser();
  await server.stop();
});

async function form(pool, policy = {}) {
  await server.call("PUT", `/v1/pools/${pool}`, policy);
  const page = await open(server, { hash: `#/pools/${pool}/add` });
  return [page, page.getByRole("form", { name: "Import values" })];
}

const importButton = (form) => form.getByRole("button", { name: /^Import/ });

test("wrong lines are named, and nothing is sent until they are right", async () => {
  const [page, it] = await form("lines");
  let sent = 0;
  page.on("request", (request) => (sent += request.method() === "POST" ? 1 : 0));
  const lines = ["good", "", " blank", "tab\there", "good", "# note", "zero\u200bwidth", "x".repeat(4097), "é".repeat(2048)];
  await it.getByRole("textbox", { name: "Values" }).fill(lines.join("\n"));
  for (const text of [
    "Line 3: The value begins or ends with a blank",
    "Line 4: The value contains the invisible character U+0009",
    "Line 5: The same value as in line 1.",
    "Line 6: The line begins with #",
    "Line 7: The value contains the invisible character U+200B",
    "Line 8: The value has more than 4096 bytes.",
  ]) {
    await it.getByText(text).waitFor();
  }
  await it.getByText("2 values, 1 line skipped, 6 invalid").waitFor();
  assert.ok(await importButton(it).isDisabled());
  await it.getByLabel("Skip lines that begin with #").check();
  await it.getByText("5 invalid").waitFor();
  assert.equal(sent, 0);
  await it.getByRole("textbox", { name: "Values" }).fill("good\r\n# note\r\nbetter\r\n");
  await it.getByText("2 values, 1 line skipped.").waitFor();
  await importButton(it).click();
  await it.getByText("2 keys imported.").waitFor();
  assert.equal((await server.call("GET", "/v1/pools/lines")).total, 2);
  assert.equal(await it.getByRole("textbox", { name: "Values" }).inputValue(), "", "the values leave the page");
  assert.deepEqual(page.faults, []);
});

test("a value that the server refuses is named by its line", async () => {
  const [page, it] = await form("refused");
  await server.call("POST", "/v1/pools/refused/keys", { values: ["known"] });
  await it.getByRole("textbox", { name: "Values" }).fill("new-1\n\nnew-2\nknown\n");
  await importButton(it).click();
  await it.getByRole("alert").filter({ hasText: "Line 4:" }).waitFor();
  await it.getByText("0 of 3 values are imported.").waitFor();
  assert.equal((await server.call("GET", "/v1/pools/refused")).total, 1);
  assert.deepEqual(page.faults, []);
});

test("a file of more values than one request takes is imported in batches", async () => {
  const [page, it] = await form("file", { keepalive_ttl_seconds: 300 });
  const path = join(server.dir, "keys.txt");
  writeFileSync(path, Array.from({ length: 12_345 }, (_, index) => `value-${index}\n`).join(""));
  await it.getByLabel("Or a file").setInputFiles(path);
  await it.getByText("12,345 values").waitFor();
  await it.getByLabel("Never purge these keys.").check();
  await importButton(it).click();
  await it.getByText("12,345 keys imported.").waitFor();
  const pool = await server.call("GET", "/v1/pools/file");
  assert.deepEqual([pool.total, pool.next_purge_at], [12_345, null]);
  assert.deepEqual(page.faults, []);
});

test("a lost answer imports nothing twice", async () => {
  const [page, it] = await form("lost");
  let lost = 0;
  await page.route("**/v1/pools/lost/keys", async (route) => {
    if (route.request().method() !== "POST" || lost > 0) return route.continue();
    lost += 1;
    await route.fetch();
    await route.abort();
  });
  await it.getByRole("textbox", { name: "Values" }).fill("one\ntwo");
  await importButton(it).click();
  await it.getByText("2 keys imported.").waitFor();
  assert.equal(lost, 1);
  assert.equal((await server.call("GET", "/v1/pools/lost")).total, 2);
});
