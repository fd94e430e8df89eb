/** The program of docs/typescript.md, which `test` writes to page.ts, runs and ends by itself. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { Client } from "keypeg";
import { Server, stateOf } from "./server.js";

test("the program of the documentation runs, ends, and leaves no lease", async () => {
  const server = await new Server().start();
  try {
    const program = fileURLToPath(new URL("page.js", import.meta.url));
    const environment = { ...process.env, KEYPEG_SERVER: server.url, NODE_TEST_CONTEXT: undefined };
    const running = spawn(process.execPath, [program], { env: environment, stdio: ["ignore", "pipe", "inherit"] });
    let output = "";
    running.stdout.on("data", (data: Buffer) => (output += data.toString()));
    const [code] = (await once(running, "close")) as [number];
    assert.equal(code, 0);
    assert.match(output, /^testing with account \S+\n$/);
    assert.equal((await stateOf(new Client({ server: server.url }), "docs")).available, 2);
  } finally {
    await server.end();
  }
});
