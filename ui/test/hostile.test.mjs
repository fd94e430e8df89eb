// Text that any client can send to the page: it is shown as text, whatever it contains.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { closeBrowser, open, Server } from "./support.mjs";

const PAYLOADS = [
  "<script>globalThis.pwned=1</script>",
  "<img src=x onerror=globalThis.pwned=1>",
  "\"><svg onload=globalThis.pwned=1>",
  "' onmouseover='globalThis.pwned=1",
  "javascript:globalThis.pwned=1",
  "</code></td></tr></table><h1>Error</h1>",
  "<style>*{display:none}</style>",
  "<iframe srcdoc=\"<script>parent.pwned=1</script>\">",
  "<a href=\"https://evil.example/\">Sign in again</a>",
  "<form action=https://evil.example><input name=token>",
  "<meta http-equiv=refresh content=0;url=https://evil.example>",
  "<link rel=stylesheet href=https://evil.example/x.css>",
  "{{constructor.constructor('globalThis.pwned=1')()}}",
  "${globalThis.pwned=1}",
  "&lt;b&gt;&#60;b&#62;&quot;",
  "__proto__",
  "$(touch /tmp/pwned);`id`'\"\\",
  "job\u202egnp.exe",
  "zero\u200bwidth\u2060join\ufeffer",
  "e\u0301\u0301\u0301\u0301\u0301\u0301\u0301\u0301 \u{1f469}\u200d\u{1f680} \u0645\u0631\u062d\u0628\u0627",
  "x".repeat(128),
];

let server;
before(async () => {
  server = await Server.start();
  await server.call("PUT", "/v1/pools/hostile", { lease_ttl_seconds: 3600 });
});
after(async () => {
  await closeBrowser();
  await server.stop();
});

/** The text of a payload as the page shows it. */
function shown(payload) {
  return payload.replace(/[\u200b\u200d\u2060\ufeff\u202e]/g, (character) => `\u27e8U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}\u27e9`);
}

async function assertHarmless(page, selector, payloads = PAYLOADS) {
  const texts = await page.locator(selector).allTextContents();
  for (const payload of payloads) {
    assert.ok(texts.some((text) => text.includes(shown(payload))), `not shown: ${JSON.stringify(payload)}`);
  }
  const state = await page.evaluate(() => ({
    pwned: "pwned" in globalThis,
    foreign: document.querySelectorAll("iframe, img, form[action], link[href^='https:'], a[href^='https:'], main script, main style").length,
    wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  }));
  assert.deepEqual(state, { pwned: false, foreign: 0, wide: 0 });
  assert.deepEqual(page.faults, []);
  assert.deepEqual([...page.requestsTo], [new URL(server.url).host]);
}

test("hostile holders, reasons and events are text", async () => {
  await server.call("POST", "/v1/pools/hostile/keys", { count: PAYLOADS.length });
  const events = await open(server, { hash: "#/pools/hostile/events" });
  await events.locator(".event-table tbody tr").filter({ hasText: "resync" }).waitFor();
  const leases = [];
  for (const holder of PAYLOADS) leases.push(await server.call("POST", "/v1/pools/hostile/leases", { holder }));
  const page = await open(server, { hash: "#/pools/hostile/leases" });
  await page.locator(".key-table tbody tr").nth(PAYLOADS.length - 1).waitFor();
  await assertHarmless(page, ".key-table .text");
  await events.locator(".event-table tbody tr").nth(PAYLOADS.length).waitFor();
  await assertHarmless(events, ".event-table .details");
  await page.getByRole("button", { name: /^Force-release/ }).first().click();
  await page.getByRole("dialog").waitFor();
  await page.keyboard.press("Escape");
  for (const [index, { id }] of leases.entries()) {
    await server.call("POST", `/v1/pools/hostile/leases/${id}/release`, { quarantine: true, reason: PAYLOADS[index] });
  }
  const keys = await open(server, { hash: "#/pools/hostile/keys" });
  await keys.locator(".key-table tbody tr").nth(PAYLOADS.length - 1).waitFor();
  await assertHarmless(keys, ".key-table .text:not(.label)");
});

test("hostile labels are text, also in questions, commands and events", async () => {
  await server.call("PUT", "/v1/pools/labels", { lease_ttl_seconds: 3600 });
  // The server refuses labels with characters that do not print; every other text is one.
  const allowed = PAYLOADS.filter((payload) => payload === shown(payload));
  assert.ok(allowed.length >= 18);
  const events = await open(server, { hash: "#/pools/labels/events" });
  await events.locator(".event-table tbody tr").filter({ hasText: "resync" }).waitFor();
  const { keys } = await server.call("POST", "/v1/pools/labels/keys", { count: allowed.length, labels: allowed });
  for (const [index, { id }] of keys.entries()) await server.call("PATCH", `/v1/pools/labels/keys/${id}`, { label: `${allowed[index].slice(0, 127)}.` });
  await events.locator(".event-table tbody tr").nth(allowed.length).waitFor();
  await assertHarmless(events, ".event-table .details", allowed.map((payload) => payload.slice(0, 127)));
  for (const [index, { id }] of keys.entries()) await server.call("PATCH", `/v1/pools/labels/keys/${id}`, { label: allowed[index] });
  const page = await open(server, { hash: "#/pools/labels/keys" });
  await page.locator(".key-table tbody tr").nth(allowed.length - 1).waitFor();
  await assertHarmless(page, ".key-table .label", allowed);
  for (const { id } of keys) {
    await page.getByRole("button", { name: `Label key ${id}` }).click();
    await page.getByRole("dialog").getByText("As a command").click();
    await assertHarmless(page, "dialog", []);
    await page.keyboard.press("Escape");
  }
});

test("a hostile value is text when it is revealed, and as a name of a pool it is refused", async () => {
  await server.call("PUT", "/v1/pools/values");
  const value = "<img src=x onerror=globalThis.pwned=1>\u202e";
  await server.call("POST", "/v1/pools/values/keys", { values: [value] });
  const page = await open(server, { hash: "#/pools/values/keys" });
  await page.getByRole("button", { name: /Reveal/ }).click();
  await page.getByText("<img src=x onerror=globalThis.pwned=1>\u27e8U+202E\u27e9").waitFor();
  assert.deepEqual(page.faults, []);
  for (const name of ["<img src=x onerror=globalThis.pwned=1>", "..%2f..%2flivez", "%", "__proto__", "a".repeat(500)]) {
    const other = await open(server, { hash: `#/pools/${name}/leases` });
    await other.getByRole("alert").first().waitFor();
    assert.equal(await other.evaluate(() => "pwned" in globalThis), false);
    assert.deepEqual(other.faults, [], name);
    await other.context().close();
  }
});

test("a command quotes what a shell would run", async () => {
  const { quoted } = await importSource();
  for (const word of ["a b", "$(id)", "`id`", "it's", "\"", "a\nb", "*", "~"]) {
    const text = quoted(word);
    assert.ok(text.startsWith("'") && text.endsWith("'"), text);
    assert.equal(text.slice(1, -1).replaceAll(`'\\''`, "'"), word);
  }
  assert.equal(quoted("http://127.0.0.1:8000/v1/pools/ci"), "http://127.0.0.1:8000/v1/pools/ci");
});

/** Builds one source file for Node. */
async function importSource() {
  const { build } = await import("esbuild");
  const { fileURLToPath } = await import("node:url");
  const entry = fileURLToPath(new URL("../src/commands.tsx", import.meta.url));
  const { outputFiles } = await build({ entryPoints: [entry], bundle: true, write: false, format: "esm", jsx: "automatic", jsxImportSource: "preact" });
  return import(`data:text/javascript;base64,${Buffer.from(outputFiles[0].text).toString("base64")}`);
}
