// Builds the dashboard into the directory that the server embeds. With --check it builds into memory
// and fails if the committed files differ; with --types it writes only the types of the API. A file's
// name in the page contains the first bytes of the SHA-256 of its content, as the server computes it.
// The large files also stand beside themselves as gzip: what counts is what they unpack to, because
// the compressed bytes differ between versions of zlib.
import { createHash } from "node:crypto";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { execFileSync } from "node:child_process";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { gunzipSync, gzipSync } from "node:zlib";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const target = join(here, "../crates/keypeg/ui/dashboard");
const types = join(here, "src/openapi.d.ts");
const check = process.argv.includes("--check");

function generatedTypes() {
  const tool = join(here, "node_modules/openapi-typescript/bin/cli.js");
  const document = join(here, "../docs/openapi.json");
  return execFileSync(process.execPath, [tool, document, "--silent"], { encoding: "utf8", stdio: ["ignore", "pipe", "inherit"] });
}

async function bundle() {
  const result = await build({
    entryPoints: [join(here, "src/main.tsx"), join(here, "src/style.css")],
    entryNames: "[name]",
    outdir: target,
    bundle: true,
    minify: true,
    write: false,
    charset: "utf8",
    format: "esm",
    target: ["es2022"],
    jsx: "automatic",
    jsxImportSource: "preact",
    legalComments: "inline",
    loader: { ".css": "css" },
  });
  const text = (ending) => result.outputFiles.find((file) => file.path.endsWith(ending)).text;
  return { "app.js": text("main.js"), "app.css": text("style.css") };
}

function named(file, content) {
  const digest = createHash("sha256").update(content).digest("hex").slice(0, 16);
  return file.replace(".", `-${digest}.`);
}

async function write(path, content) {
  await mkdir(dirname(path), { recursive: true });
  await writeFile(path, content);
}

if (!check) await write(types, generatedTypes());
if (process.argv.includes("--types")) process.exit(0);

/** Returns what a committed compressed file unpacks to, or null. */
function unpacked(bytes) {
  try {
    return gunzipSync(bytes).toString("utf8");
  } catch {
    return null;
  }
}

const files = await bundle();
const large = Object.keys(files);
files["icon.svg"] = await readFile(join(here, "src/icon.svg"), "utf8");
let page = await readFile(join(here, "src/index.html"), "utf8");
for (const [file, content] of Object.entries(files)) {
  page = page.replaceAll(`/ui/${file}`, `/ui/${named(file, content)}`);
}
files["index.html"] = page;

const differing = [];
for (const [file, content] of Object.entries(files)) {
  const path = join(target, file);
  const present = await readFile(path, "utf8").catch(() => null);
  if (present === content) continue;
  differing.push(path);
  if (!check) await write(path, content);
}
for (const file of large) {
  const path = join(target, `${file}.gz`);
  const present = await readFile(path).catch(() => null);
  if (present !== null && unpacked(present) === files[file]) continue;
  differing.push(path);
  if (!check) await write(path, gzipSync(files[file], { level: 9 }));
}
if (check && differing.length > 0) {
  console.error(`these files are not what the source builds: run "npm ci && npm run build" in ui/\n${differing.join("\n")}`);
  process.exit(1);
}
console.log(check ? "the built files come from the source" : `built; ${differing.length} files changed`);
