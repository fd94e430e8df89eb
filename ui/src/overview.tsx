// The first screen: what is wrong, the sums of all pools, the last 15 minutes, and every pool as a bar.
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { call, type Cluster, type Pool, poolPath, request, serverNow, textOf } from "./api";
import { clusterFindings, Servers } from "./cluster";
import { Command } from "./commands";
import { Confirm } from "./dialog";
import { count, counted, length, short } from "./format";
import { HistoryCharts } from "./history";
import { usePoll, useTick } from "./poll";
import { type AllPools, arranged, type Order, POOLS_MAX, type SortKey, usePools } from "./pools";
import { poolHref } from "./route";
import { type Session, useSession } from "./session";
import { Bar, STATES, Swatch } from "./states";
import { type Finding, type Metrics, parseMetrics, poolFindings, serverFindings } from "./wrong";

export function Overview() {
  const session = useSession();
  const all = usePools();
  const [creating, setCreating] = useState(false);
  const { findings: server, cluster } = useServer(session);
  const findings = useMemo(() => poolFindings(all.pools.values()), [all.pools]);
  const failed: Finding[] = all.error === null ? [] : [{ level: "error", text: textOf(all.error) }];
  return (
    <main>
      <div class="title">
        <h1>Pools</h1>
        {session.allows("admin") && <button type="button" class="primary" onClick={() => setCreating(true)}>Create pool</button>}
      </div>
      <Findings findings={[...failed, ...server, ...findings]} />
      <Totals pools={all.pools} />
      <HistoryCharts pool={null} theme={session.theme} />
      <EndsNext pools={all.pools} />
      {cluster !== null && <Servers cluster={cluster} />}
      <PoolTable all={all} />
      {creating && <CreatePool close={() => setCreating(false)} done={all.refresh} />}
    </main>
  );
}

interface ServerState {
  findings: Finding[];
  /** The servers that share the pools, if this one is not alone and the token may see them. */
  cluster: Cluster | null;
}

function useServer(session: Session): ServerState {
  const before = useRef<Metrics | null>(null);
  const canRead = session.allows("metrics");
  const { data } = usePoll<ServerState>(`metrics ${canRead}`, 10_000, async (signal) => {
    const found: Finding[] = [];
    try {
      await request("GET", "/readyz", { signal });
    } catch (error) {
      found.push({ level: "error", text: textOf(error) });
    }
    if (!canRead) return { findings: found, cluster: null };
    const response = await request("GET", "/metrics?pools=0", { headers: { accept: "text/plain" }, signal });
    const metrics = parseMetrics(await response.text());
    found.push(...serverFindings(metrics, before.current, serverNow()));
    before.current = metrics;
    // Only a server of several has this metric.
    if (!metrics.has("keypeg_store_silent_seconds")) return { findings: found, cluster: null };
    const cluster = await call<Cluster>("GET", "/v1/cluster", { signal });
    return { findings: [...clusterFindings(cluster), ...found], cluster };
  });
  return data ?? { findings: [], cluster: null };
}

const FINDINGS_MAX = 5;

function Findings({ findings }: { findings: Finding[] }) {
  if (findings.length === 0) return null;
  const more = findings.length - FINDINGS_MAX;
  return (
    <section aria-label="What is wrong" class="findings">
      <ul>
        {findings.slice(0, FINDINGS_MAX).map(({ level, text, pool }) => (
          <li key={`${pool} ${text}`} class={level}>
            <span class="level">{level === "error" ? "Error" : "Warning"}</span>
            <span>{pool !== undefined && <><a href={poolHref(pool)}>{pool}</a> </>}{text}</span>
          </li>
        ))}
      </ul>
      {more > 0 && <p class="muted">{count(more)} more: sort the pools below by the column.</p>}
    </section>
  );
}

function Totals({ pools }: { pools: Map<string, Pool> }) {
  const sums = { available: 0, leased: 0, resting: 0, quarantined: 0, waiting: 0 };
  for (const pool of pools.values()) {
    for (const name of [...STATES, "waiting"] as const) sums[name] += pool[name];
  }
  return (
    <section class="totals" aria-label="All pools together">
      {([...STATES, "waiting"] as const).map((name) => (
        <div class="total" key={name}>
          <span class="total-name"><Swatch state={name} />{name}</span>
          <span class="total-value">{count(sums[name])}</span>
        </div>
      ))}
    </section>
  );
}

const ENDS_MAX = 4;

function EndsNext({ pools }: { pools: Map<string, Pool> }) {
  useTick(1_000);
  const of = (key: "next_return_at" | "next_purge_at") =>
    arranged(pools, "", { key: key as SortKey, descending: false }).filter((pool) => pool[key] !== null).slice(0, ENDS_MAX);
  const [returns, purges] = [of("next_return_at"), of("next_purge_at")];
  if (returns.length + purges.length === 0) return null;
  return (
    <section class="ends" aria-label="What ends next">
      <Ends title="A lease or rest ends next" pools={returns} at={(pool) => pool.next_return_at} />
      <Ends title="A key is purged next, unless it is kept alive" pools={purges} at={(pool) => pool.next_purge_at} />
    </section>
  );
}

function Ends({ title, pools, at }: { title: string; pools: Pool[]; at: (pool: Pool) => string | null }) {
  return (
    <div>
      <h2>{title}</h2>
      {pools.length === 0 && <p class="muted">None.</p>}
      <ul>
        {pools.map((pool) => (
          <li key={pool.pool}>
            <a href={poolHref(pool.pool)}>{pool.pool}</a>
            <span class="number">in {length(Math.max(0, (Date.parse(at(pool) ?? "") - serverNow()) / 1000))}</span>
          </li>
        ))}
      </ul>
    </div>
  );
}

const HEADINGS: [SortKey, string][] = [
  ["available", "Available"],
  ["leased", "Leased"],
  ["resting", "Resting"],
  ["quarantined", "Quarantined"],
  ["waiting", "Waiting"],
];
/** Rows above and below the visible ones, so that scrolling shows no gap. */
const OVERSCAN = 8;
const NARROW = "(max-width: 719px)";

function PoolTable({ all }: { all: AllPools }) {
  const [filter, setFilter] = useState("");
  const [order, setOrder] = useState<Order>({ key: "pool", descending: false });
  const rows = useMemo(() => arranged(all.pools, filter, order), [all.pools, filter, order]);
  const sort = (key: SortKey) => setOrder({ key, descending: order.key === key ? !order.descending : key !== "pool" });
  const { box, first, last, height } = useWindow(rows.length);
  const isEmpty = all.complete && [...all.pools.values()].every((pool) => pool.total === 0 && pool.waiting === 0);
  const heading = (key: SortKey, text: string, kind = "number") => (
    <th scope="col" class={kind} aria-sort={order.key !== key ? "none" : order.descending ? "descending" : "ascending"}>
      <button type="button" onClick={() => sort(key)}>{text}<span aria-hidden="true" class="arrow">{order.key === key ? (order.descending ? "↓" : "↑") : ""}</span></button>
    </th>
  );
  return (
    <section aria-label="Pools" class="pools">
      <div class="tools">
        <label class="field inline">
          <span>Filter by name</span>
          <input type="search" value={filter} onInput={(event) => setFilter(event.currentTarget.value)} spellcheck={false} autocomplete="off" />
        </label>
        <label class="field inline narrow-only">
          <span>Sort by</span>
          <select value={order.key} onChange={(event) => sort(event.currentTarget.value as SortKey)}>
            <option value="pool">Name</option>
            {HEADINGS.map(([key, text]) => <option value={key} key={key}>{text}</option>)}
          </select>
        </label>
        <p class="muted" role="status">
          {rows.length === all.pools.size ? counted(rows.length, "pool") : `${count(rows.length)} of ${count(all.pools.size)} pools`}
          {!all.complete && all.error === null && ", reading more"}
          {all.truncated && `: only the first ${count(POOLS_MAX)} by name`}
        </p>
      </div>
      <div class="window" ref={box} tabIndex={0} role="region" aria-label="List of pools">
        <table class="pool-table" aria-rowcount={rows.length + 1}>
          <thead>
            <tr>
              {heading("pool", "Pool", "")}
              <th scope="col" class="bar-cell">Keys</th>
              {HEADINGS.map(([key, text]) => heading(key, text))}
            </tr>
          </thead>
          <tbody>
            {first > 0 && <tr aria-hidden="true" class="spacer" style={{ height: `${first * height}px` }} />}
            {rows.slice(first, last).map((pool, index) => <PoolRow key={pool.pool} pool={pool} row={first + index + 2} />)}
            {last < rows.length && <tr aria-hidden="true" class="spacer" style={{ height: `${(rows.length - last) * height}px` }} />}
          </tbody>
        </table>
      </div>
      {isEmpty && <FirstSteps />}
    </section>
  );
}

function PoolRow({ pool, row }: { pool: Pool; row: number }) {
  return (
    <tr aria-rowindex={row}>
      <th scope="row"><a href={poolHref(pool.pool)}>{pool.pool}</a></th>
      <td class="bar-cell"><Bar counts={pool} label={pool.pool} /></td>
      {([...STATES, "waiting"] as const).map((name) => (
        <td key={name} class={`number ${pool[name] === 0 ? "zero" : ""}`}>
          <span class="cell-name" aria-hidden="true"><Swatch state={name} /></span>
          {short(pool[name])}
        </td>
      ))}
    </tr>
  );
}

/** Returns which rows of a scrolled list are near what is visible. */
function useWindow(rows: number) {
  const box = useRef<HTMLDivElement>(null);
  const [view, setView] = useState({ top: 0, height: 600, row: 44 });
  useEffect(() => {
    const element = box.current;
    if (!element) return;
    const narrow = matchMedia(NARROW);
    const update = () => setView({ top: element.scrollTop, height: element.clientHeight || 600, row: narrow.matches ? 84 : 44 });
    const resized = new ResizeObserver(update);
    resized.observe(element);
    element.addEventListener("scroll", update, { passive: true });
    narrow.addEventListener("change", update);
    update();
    return () => {
      resized.disconnect();
      element.removeEventListener("scroll", update);
      narrow.removeEventListener("change", update);
    };
  }, []);
  const first = Math.max(0, Math.min(rows, Math.floor(view.top / view.row)) - OVERSCAN);
  const last = Math.min(rows, Math.ceil((view.top + view.height) / view.row) + OVERSCAN);
  return { box, first, last, height: view.row };
}

function FirstSteps() {
  return (
    <div class="card first-steps">
      <h2>No keys yet</h2>
      <p>Generate three keys in the pool <code>default</code>, then run a command with one of them:</p>
      <Command name="keypeg" text={`keypeg generate -n 3 --server ${location.origin}`} />
      <Command name="keypeg" text={`keypeg exec --server ${location.origin} -- printenv KEYPEG_KEY_ID`} />
    </div>
  );
}

function CreatePool({ close, done }: { close: () => void; done: () => void }) {
  const { withToken } = useSession();
  const [name, setName] = useState("");
  const isValid = /^[a-z0-9][a-z0-9_.-]{0,63}$/.test(name);
  const path = poolPath(isValid ? name : "ci");
  return (
    <Confirm
      title="Create a pool"
      confirm="Create"
      action={{ method: "PUT", path, keypeg: `keypeg pool create ${isValid ? name : "ci"}` }}
      withToken={withToken}
      close={close}
      run={async () => {
        if (!isValid) throw new Error("A name has 1 to 64 of a-z 0-9 _ . - and begins with a letter or a digit.");
        await call("PUT", path, { headers: { "if-none-match": "*" } });
        done();
        location.hash = poolHref(name, "policy");
      }}
    >
      <p>The pool gets the default policy, which you can change next.</p>
      <label class="field">
        <span>Name</span>
        <input value={name} onInput={(event) => setName(event.currentTarget.value)} spellcheck={false} autocomplete="off" autofocus />
        <small>Letters a–z, digits, and _ . - ; at most 64.</small>
      </label>
    </Confirm>
  );
}
