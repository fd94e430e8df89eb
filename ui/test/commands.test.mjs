// The commands under "As a command": pasted into a shell, each does what the page does.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { after, before, test } from "node:test";
import { binary, closeBrowser, open, Server } from "./support.mjs";

let server;
before(async () => (server = await Server.start()));
after(async () => {
  await closeBrowser();
  await server.stop();
});

/** Opens the commands inside `part`, waits for the one of keypeg that begins like this, and returns it. */
async function commandIn(part, beginning) {
  const details = part.locator("details.commands");
  if (!(await details.evaluate((element) => element.open))) await details.locator("summary").click();
  const code = details.locator("code", { hasText: beginning });
  await code.waitFor();
  return code.textContent();
}

/** Runs a command of keypeg in a shell, as a reader pastes it. */
function paste(command, more = "") {
  const { status, stdout, stderr } = spawnSync("sh", ["-c", `keypeg() { "$KEYPEG" "$@"; }\n${command}${more}`], {
    encoding: "utf8",
    env: { PATH: process.env.PATH, HOME: server.dir, KEYPEG: binary },
    timeout: 60_000,
  });
  assert.equal(status, 0, `${command}: ${stderr}`);
  return stdout;
}

test("a pool is created and deleted by the commands of the page", async () => {
  const page = await open(server);
  await page.getByRole("button", { name: "Create pool" }).click();
  const dialog = page.getByRole("dialog", { name: "Create a pool" });
  await dialog.getByLabel("Name").fill("a.pool-1");
  paste(await commandIn(dialog, "keypeg pool create a.pool-1 "));
  assert.equal((await server.call("GET", "/v1/pools/a.pool-1")).total, 0);
  await page.goto(`${server.url}/#/pools/a.pool-1/policy`);
  await page.getByRole("button", { name: "Delete pool" }).click();
  // A shell of a test has no terminal for the question of the command.
  paste(await commandIn(page.getByRole("dialog"), "keypeg pool delete a.pool-1 "), " --yes");
  await assert.rejects(server.call("GET", "/v1/pools/a.pool-1"), /404/);
  assert.deepEqual(page.faults, []);
});

test("each field of a policy is changed by the command of the page", async () => {
  await server.call("PUT", "/v1/pools/policy", { max_hold_seconds: 3600, max_keys: 9, key_prefix: "old" });
  const page = await open(server, { hash: "#/pools/policy/policy" });
  const form = page.getByRole("form", { name: "Policy" });
  const wanted = {
    lease_ttl_seconds: ["Longest lease", "1.5", 1.5],
    max_hold_seconds: ["Longest hold", "", null],
    rest_seconds: ["Rest", "0.25", 0.25],
    keepalive_ttl_seconds: ["Purge without a keep-alive", "86400", 86_400],
    max_keys: ["Most keys", "", null],
    key_length: ["Length of generated values", "21", 21],
    key_prefix: ["Prefix of generated values", "-a_", "-a_"],
  };
  for (const [label, text] of Object.values(wanted)) await form.getByRole("textbox", { name: label }).fill(text);
  paste(await commandIn(form, "keypeg pool set policy --lease-ttl=1.5s --max-hold=none"));
  const pool = await server.call("GET", "/v1/pools/policy");
  for (const [name, [, , value]] of Object.entries(wanted)) assert.equal(pool[name], value, name);
  assert.deepEqual(page.faults, []);
});

test("the commands for events and for an import have the choices of the page", async () => {
  await server.call("PUT", "/v1/pools/more", {});
  const page = await open(server, { hash: "#/pools/more/events" });
  const events = await commandIn(page.getByRole("main"), "keypeg events --follow --pool more ");
  assert.match(paste(events, " --limit 1"), /resync/);
  await page.goto(`${server.url}/#/pools/more/add`);
  const form = page.getByRole("form", { name: "Import values" });
  await form.getByLabel("Skip lines that begin with #").check();
  await form.getByLabel(/^Never purge these keys/).check();
  const command = await commandIn(form, "keypeg import FILE --skip-comments --no-keepalive --pool more ");
  paste(`printf '%s\\n' '# accounts' account-1 | ${command.replace("FILE", "-")}`);
  const { keys } = await server.call("GET", "/v1/pools/more/keys");
  assert.deepEqual(keys.map(({ expires_at: at }) => at), [null]);
  assert.deepEqual(page.faults, []);
});
