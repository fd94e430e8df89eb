// The embedded files come from the source, and the source is right by its types, which are those of
// the published document.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const run = (...args) => execFileSync(process.execPath, args, { cwd: root, encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] });

test("the built files are what the source builds", () => {
  assert.match(run("build.mjs", "--check"), /come from the source/);
});

test("the source has no error of types against the published document", () => {
  run("build.mjs", "--types");
  run("node_modules/typescript/bin/tsc", "--noEmit");
});

test("the lock file pins each package by its digest and no registry", () => {
  const text = readFileSync(new URL("../package-lock.json", import.meta.url), "utf8");
  const { packages } = JSON.parse(text);
  for (const [name, { integrity, link, resolved }] of Object.entries(packages)) {
    assert.equal(resolved, undefined, name);
    assert.ok(name === "" || link || integrity?.startsWith("sha512-"), name);
  }
});
