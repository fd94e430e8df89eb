/** A real server for the tests, and a proxy in front of it that loses answers. */

import assert from "node:assert/strict";
import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { Client } from "keypeg";

/** How long a test waits for what must happen, in milliseconds: far more than it takes. */
export const PATIENCE = 30_000;

/** Waits until the condition holds. */
export async function waitFor(what: string, condition: () => unknown): Promise<void> {
  for (const begin = performance.now(); !(await condition()); await sleep(10)) {
    assert.ok(performance.now() - begin < PATIENCE, `${what} did not happen within ${PATIENCE} ms`);
  }
}

// An address of loopback that no other process uses: no server of another test gets the port of a killed one.
const host = `127.${64 + (process.pid >> 16)}.${(process.pid >> 8) & 255}.${process.pid & 255}`;

/** A server process on a free port, with a data directory that survives a restart. */
export class Server {
  readonly #directory = mkdtempSync(join(tmpdir(), "keypeg-typescript-"));
  #process: ChildProcess | undefined;
  url = "";

  async start(): Promise<this> {
    const binary = process.env["KEYPEG_BINARY"];
    assert.ok(binary, "KEYPEG_BINARY names the server to test with");
    const environment = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("KEYPEG")));
    const options = ["serve", "--data", join(this.#directory, "data"), "--listen", `${host}:0`];
    this.#process = spawn(binary, options, { env: environment, stdio: ["ignore", "pipe", "ignore"] });
    const [line] = (await once(this.#process.stdout!, "data")) as [Buffer];
    this.url = /http:\/\/127\.[\d.]+:\d+/.exec(line.toString())?.[0] ?? assert.fail(line.toString());
    return this;
  }

  get port(): number {
    return Number(new URL(this.url).port);
  }

  async kill(): Promise<void> {
    const exit = once(this.#process!, "exit");
    this.#process!.kill("SIGKILL");
    await exit;
  }

  async end(): Promise<void> {
    await this.kill();
    rmSync(this.#directory, { recursive: true, force: true });
  }
}

/** Passes bytes between clients and a server, which can change, and loses answers on request. */
export class Proxy {
  readonly #listener = net.createServer((client) => this.#pass(client));
  readonly #sockets = new Set<net.Socket>();
  /** The port of the server; `undefined` closes connections. */
  upstream: number | undefined;
  /** The start of the requests whose answer is lost, once: the server applies it, then the connection is cut. */
  loses: RegExp | undefined;
  lost = 0;

  async start(port: number): Promise<this> {
    this.upstream = port;
    this.#listener.listen(0, "127.0.0.1");
    await once(this.#listener, "listening");
    return this;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.#listener.address() as net.AddressInfo).port}`;
  }

  /** Cuts all connections. */
  cut(): void {
    for (const socket of this.#sockets) socket.destroy();
  }

  end(): void {
    this.#listener.close();
    this.cut();
  }

  #pass(client: net.Socket): void {
    if (this.upstream === undefined) {
      client.destroy();
      return;
    }
    const server = net.connect({ port: this.upstream, host, noDelay: true });
    let isLost = false;
    const pairs: [net.Socket, net.Socket][] = [
      [client, server],
      [server, client],
    ];
    for (const [from, to] of pairs) {
      this.#sockets.add(from);
      from.on("error", () => undefined);
      from.on("close", () => {
        this.#sockets.delete(from);
        to.destroy();
      });
    }
    client.on("data", (data) => {
      if (this.loses?.test(data.toString("latin1")) === true) {
        isLost = true;
        this.loses = undefined;
      }
      server.write(data);
    });
    server.on("data", (data) => {
      if (isLost) {
        this.lost += 1;
        client.destroy();
      } else client.write(data);
    });
  }
}

let pools = 0;

/** Creates a pool with keys that time never purges, and returns its name. */
export async function poolOf(client: Client, keys: number, policy: { lease_ttl_seconds?: number } = {}): Promise<string> {
  const pool = `pool-${process.pid}-${++pools}`;
  const body = { max_hold_seconds: 3_600, keepalive_ttl_seconds: null, ...policy };
  await client.call("put", "/v1/pools/{pool}", { path: { pool }, body });
  const values = Array.from({ length: keys }, (_, index) => `${pool}-${index}`);
  if (keys > 0) await client.call("post", "/v1/pools/{pool}/keys", { path: { pool }, body: { values } });
  return pool;
}

/** Returns the counts and the policy of a pool. */
export function stateOf(client: Client, pool: string) {
  return client.call("get", "/v1/pools/{pool}", { path: { pool } });
}
