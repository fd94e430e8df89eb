// What the browser tests share: a real server on a free port, a headless Chromium, and calls to the
// API beside the page. Each server ends with its test.
import { spawn, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { chromium } from "playwright-core";

const here = dirname(fileURLToPath(import.meta.url));
const root = join(here, "../..");
export const binary = process.env.KEYPEG_BINARY ?? join(root, "target/debug/keypeg");
const shots = join(root, "target/ui-screenshots");
/** How long anything may take that the tests wait for, on a slow machine. */
export const PATIENCE_MS = 60_000;

export class Server {
  /** Starts a server in memory. With `tokens`, a list of `[name, pools, scopes]`, it asks for tokens.
   * With `store`, a URL, it shares its pools. */
  static async start({ tokens = [], store = null } = {}) {
    const server = new Server();
    server.dir = mkdtempSync(join(tmpdir(), "keypeg-ui-"));
    server.tokens = {};
    const shared = ["--store", store, "--advertise", "http://127.0.0.1:0", "--shards", "4", "--memory", "256MiB"];
    const args = ["serve", "--listen", "127.0.0.1:0", ...(store === null ? ["--ephemeral"] : shared)];
    if (tokens.length > 0) {
      const file = join(server.dir, "tokens.toml");
      let text = "";
      for (const [name, pools, scopes] of tokens) {
        const words = ["token", "new", "--name", name, ...pools.flatMap((pool) => ["--pool", pool]), ...scopes.flatMap((scope) => ["--scope", scope])];
        const made = spawnSync(binary, words, { encoding: "utf8" });
        if (made.status !== 0) throw new Error(made.stderr);
        const token = /kpt_[A-Za-z0-9_]+/.exec(made.stdout + made.stderr);
        server.tokens[name] = token[0];
        text += made.stdout.slice(made.stdout.indexOf("[[token]]"));
      }
      writeFileSync(file, text, { mode: 0o600 });
      args.push("--tokens", file);
    }
    const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("KEYPEG_")));
    server.process = spawn(binary, args, { stdio: ["ignore", "pipe", "pipe"], env });
    server.ended = new Promise((resolve) => server.process.once("exit", resolve));
    let log = "";
    server.process.stderr.on("data", (data) => (log += data));
    server.url = await new Promise((resolve, reject) => {
      let out = "";
      server.process.stdout.on("data", (data) => {
        out += data;
        const url = /http:\/\/[0-9.]+:[0-9]+/.exec(out);
        if (url) resolve(url[0]);
      });
      server.process.once("exit", () => reject(new Error(`the server ended: ${log}`)));
      server.process.once("error", reject);
    });
    return server;
  }

  async call(method, path, body, token) {
    const headers = {};
    if (body !== undefined) headers["content-type"] = "application/json";
    if (token) headers.authorization = `Bearer ${token}`;
    const response = await fetch(this.url + path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
    const text = await response.text();
    if (!response.ok) throw new Error(`${method} ${path}: ${response.status} ${text}`);
    return text === "" ? null : JSON.parse(text);
  }

  async stop() {
    this.process.kill("SIGKILL");
    await this.ended;
    rmSync(this.dir, { recursive: true, force: true });
  }
}

/** Returns the path of a Chromium, or null. */
export function findChromium() {
  const known = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
  return [process.env.KEYPEG_CHROMIUM, ...known].find((path) => path && existsSync(path)) ?? null;
}

let browser = null;

export async function launch() {
  // Tests run as root in containers, where Chromium has no sandbox, and /dev/shm is small there.
  browser ??= await chromium.launch({ executablePath: findChromium(), args: ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"] });
  return browser;
}

export async function closeBrowser() {
  await browser?.close();
  browser = null;
}

export const DESKTOP = { width: 1280, height: 900 };
export const PHONE = { width: 390, height: 844 };

/** Opens a page of its own. It fails the test on a script error, a policy violation or a dialog. */
export async function open(server, { hash = "", viewport = DESKTOP, colours = "light" } = {}) {
  const context = await (await launch()).newContext({ viewport, colorScheme: colours, locale: "en-GB", reducedMotion: "reduce", isMobile: viewport.width < 500, hasTouch: viewport.width < 500 });
  const page = await context.newPage();
  page.setDefaultTimeout(PATIENCE_MS);
  page.faults = [];
  page.requestsTo = new Set();
  page.on("pageerror", (error) => page.faults.push(`script: ${error}`));
  page.on("dialog", (dialog) => {
    page.faults.push(`dialog: ${dialog.message()}`);
    void dialog.dismiss();
  });
  page.on("console", (message) => {
    const text = message.text();
    // Chromium logs each answer that is a refusal; the tests cause some on purpose.
    const isFault = message.type() === "error" && !text.startsWith("Failed to load resource");
    if (isFault) page.faults.push(`console: ${text}`);
  });
  page.on("request", (request) => page.requestsTo.add(new URL(request.url()).host));
  await page.goto(`${server.url}/${hash}`);
  return page;
}

export async function shot(page, name) {
  mkdirSync(shots, { recursive: true });
  await page.screenshot({ path: join(shots, `${name}.png`), fullPage: true });
}

const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

/** Returns the serious and critical findings of axe-core. */
export async function seriousFindings(page) {
  // By the protocol of the browser, which the policy of the page does not restrict.
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
  return violations
    .filter(({ impact }) => impact === "serious" || impact === "critical")
    .map(({ id, impact, nodes }) => `${impact} ${id}: ${nodes.map(({ target, failureSummary }) => `${target} ${failureSummary}`).slice(0, 3).join("; ")}`);
}
