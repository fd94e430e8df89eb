// The servers that share their pools: which shards each of them serves, and what is wrong with them.
// Shown only if the server is one of several. Decides nothing, and reads no time.
import type { Cluster } from "./api";
import { count, length } from "./format";
import type { Finding } from "./wrong";

/** Findings of the servers and shards, the worst first. */
export function clusterFindings({ servers, shards, store_error }: Cluster): Finding[] {
  const found: Finding[] = [];
  if (store_error !== null) found.push({ level: "error", text: `The last heartbeat of this server failed: ${store_error}` });
  const unowned = shards.filter((shard) => shard.owner === null).map((shard) => shard.shard);
  if (unowned.length > 0) {
    const text = `No server serves the ${unowned.length === 1 ? "shard" : "shards"} ${ranges(unowned)}: requests for its pools wait, then are refused.`;
    found.push({ level: "error", text });
  }
  for (const { server, silent_seconds } of servers.filter((server) => !server.live)) {
    found.push({ level: "warning", text: `The server ${server} has sent no heartbeat for ${length(silent_seconds)}.` });
  }
  for (const { server, unreachable } of servers) {
    if (unreachable !== null) found.push({ level: "error", text: `This server cannot reach the server ${server}: ${unreachable}` });
  }
  const open = servers.filter((server) => server.live && server.access_tokens === false).map((server) => server.server);
  if (open.length > 0 && servers.some((server) => server.live && server.access_tokens === true)) {
    const text = `The ${open.length === 1 ? "server" : "servers"} ${open.join(", ")} ${open.length === 1 ? "requires" : "require"} no access tokens, and others do.`;
    found.push({ level: "error", text });
  }
  for (const { shard, owner, error } of shards) {
    const what = owner === null ? "follow or take over" : "follow";
    if (error !== null) found.push({ level: "warning", text: `This server cannot ${what} shard ${count(shard)}: ${error}` });
  }
  return found;
}

/** Writes numbers in ascending order as ranges: `0-3, 5`. */
export function ranges(numbers: number[]): string {
  const runs: [number, number][] = [];
  for (const number of numbers) {
    const last = runs.at(-1);
    if (last !== undefined && last[1] + 1 === number) last[1] = number;
    else runs.push([number, number]);
  }
  return runs.map(([first, last]) => (first === last ? `${first}` : `${first}-${last}`)).join(", ");
}

export function Servers({ cluster }: { cluster: Cluster }) {
  return (
    <section aria-label="Servers" class="servers">
      <h2>Servers</h2>
      <div class="scroll" tabIndex={0} role="region" aria-label="Table of servers">
        <table>
          <thead>
            <tr>
              <th scope="col">Server</th>
              <th scope="col">State</th>
              <th scope="col">Owns the shards</th>
              <th scope="col">Follows</th>
            </tr>
          </thead>
          <tbody>
            {cluster.servers.map(({ server, live, owns, follows }) => (
              <tr key={server}>
                <th scope="row">{server}{server === cluster.server && <span class="muted"> (this server)</span>}</th>
                <td>{live ? "live" : "silent"}</td>
                <td>{ranges(owns) || "none"}</td>
                <td>{ranges(follows) || "none"}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </section>
  );
}
