// Access tokens: who is asked, where a token is kept, and what its scopes show.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { closeBrowser, open, Server } from "./support.mjs";

let server;
let key;
before(async () => {
  server = await Server.start({
    tokens: [
      ["admin", ["*"], ["admin"]],
      ["reader", ["team-*"], ["read"]],
      ["operator", ["*"], ["read", "force", "keys"]],
      ["forcer", ["*"], ["read", "force"]],
      ["keeper", ["*"], ["read", "keys"]],
      ["lender", ["*"], ["lend"]],
    ],
  });
  const { admin } = server.tokens;
  for (const pool of ["team-a", "other"]) await server.call("PUT", `/v1/pools/${pool}`, { lease_ttl_seconds: 600 }, admin);
  [key] = (await server.call("POST", "/v1/pools/team-a/keys", { count: 1 }, admin)).keys;
  await server.call("POST", "/v1/pools/team-a/leases", { holder: "job" }, admin);
});
after(async () => {
  await closeBrowser();
  await server.stop();
});

async function signIn(page, token) {
  await page.getByLabel("Access token").fill(token);
  await page.getByRole("button", { name: "Sign in" }).click();
}

test("a wrong token is refused with a reason, and nothing is shown", async () => {
  const page = await open(server);
  for (const [token, says] of [["kpt_wrong", "The server does not know this token"], ["two words", "visible ASCII characters"]]) {
    await signIn(page, token);
    await page.getByRole("alert").filter({ hasText: says }).waitFor();
  }
  assert.equal(await page.locator(".pool-table").count(), 0);
  assert.ok(!(await page.content()).includes("team-a"));
});

test("a token is in memory alone, and a reload signs out", async () => {
  const page = await open(server);
  await signIn(page, server.tokens.admin);
  await page.getByRole("link", { name: "team-a", exact: true }).first().waitFor();
  const kept = await page.evaluate(() => JSON.stringify([{ ...localStorage }, { ...sessionStorage }, document.cookie, location.href, document.documentElement.outerHTML]));
  assert.ok(!kept.includes(server.tokens.admin));
  await page.reload();
  await page.getByRole("heading", { name: "Sign in" }).waitFor();
  await signIn(page, server.tokens.admin);
  await page.getByRole("button", { name: "Sign out" }).click();
  await page.getByRole("heading", { name: "Sign in" }).waitFor();
  assert.deepEqual(page.faults, []);
});

test("a reader of certain pools sees these alone, and no action", async () => {
  const page = await open(server);
  await signIn(page, server.tokens.reader);
  await page.getByRole("link", { name: "team-a", exact: true }).first().waitFor();
  assert.ok(!(await page.content()).includes("other</a>"));
  assert.equal(await page.getByRole("button", { name: "Create pool" }).count(), 0);
  await page.locator(".pool-table").getByRole("link", { name: "team-a" }).click();
  await page.locator(".key-table").getByText("job").waitFor();
  for (const name of [/Force-release/, /Quarantine/, /Label/, /Delete/, /Reveal/]) assert.equal(await page.getByRole("button", { name }).count(), 0);
  assert.equal(await page.getByRole("link", { name: "Add keys" }).count(), 0);
  await page.getByRole("link", { name: "Policy" }).click();
  await page.getByText("To change the policy, a token needs the scope admin.").waitFor();
  assert.ok(await page.getByRole("textbox", { name: "Longest lease" }).isDisabled());
  await page.goto(`${server.url}/#/pools/other/leases`);
  await page.getByRole("alert").getByRole("link", { name: "All pools" }).waitFor();
  assert.deepEqual(page.faults, []);
});

test("a command names the variable of the token, never the token", async () => {
  const page = await open(server, { hash: "#/pools/team-a/keys" });
  await signIn(page, server.tokens.operator);
  await page.getByRole("button", { name: `Force-release key ${key.id}` }).click();
  assert.equal(await page.getByRole("button", { name: /Reveal/ }).count(), 0, "it lacks the scope");
  const dialog = page.getByRole("dialog");
  await dialog.getByText("As a command").click();
  await dialog.getByText('-H "Authorization: Bearer $KEYPEG_TOKEN"').waitFor();
  assert.ok(!(await page.content()).includes(server.tokens.operator));
});

test("the scopes force and keys each allow their actions alone", async () => {
  for (const [name, offered, withheld] of [
    ["forcer", ["Force-release", "Quarantine"], ["Label", "Delete", "Reveal"]],
    ["keeper", ["Label", "Delete"], ["Force-release", "Quarantine", "Reveal"]],
  ]) {
    const page = await open(server, { hash: "#/pools/team-a/keys" });
    await signIn(page, server.tokens[name]);
    await page.locator(".key-table").getByText("job").waitFor();
    const texts = await page.locator(".key-table .actions button").allTextContents();
    for (const text of offered) assert.ok(texts.includes(text), `${name}: ${text}`);
    for (const text of withheld) assert.ok(!texts.includes(text), `${name}: ${text}`);
    await page.context().close();
  }
});

test("a token without the scope read shows why nothing is there", async () => {
  const page = await open(server);
  await signIn(page, server.tokens.lender);
  await page.getByText("lacks the scope read").waitFor();
  await page.getByRole("button", { name: "Sign out" }).click();
  await page.getByRole("heading", { name: "Sign in" }).waitFor();
});
