// One pool: its counts, its last 15 minutes, and a tab for each thing to do with it.
import { call, Failure, type Pool, poolPath, textOf } from "./api";
import { AddKeys } from "./add_keys";
import { Events } from "./events";
import { DrainBanner } from "./drain";
import { useKeptFocus } from "./focus";
import { count, counted, setting } from "./format";
import { HistoryCharts } from "./history";
import { Keys } from "./keys";
import { PolicyEditor } from "./policy";
import { usePoll } from "./poll";
import { poolHref, type Tab, TABS } from "./route";
import { useSession } from "./session";
import { Bar, STATES, Swatch } from "./states";

export function PoolView({ name, tab }: { name: string; tab: Tab }) {
  const session = useSession();
  const view = useKeptFocus<HTMLElement>();
  const { data, error, refresh } = usePoll<Pool>(name, 2_000, (signal) => call<Pool>("GET", poolPath(name), { signal }));
  const isUnknown = error instanceof Failure && (error.status === 404 || error.status === 403);
  const shown = isUnknown ? null : data;
  const tabs = TABS.filter(([key]) => key !== "add" || session.allows("keys"));
  return (
    <main ref={view}>
      <nav aria-label="Path" class="path"><a href="#/">Pools</a> / <span>{name}</span></nav>
      <div class="title"><h1 tabIndex={-1}>{name}</h1></div>
      {error !== null && (
        <p class="error" role="alert">
          {textOf(error)} {isUnknown && <a href="#/">All pools</a>}
        </p>
      )}
      {shown && (
        <>
          {shown.draining && <DrainBanner pool={shown} changed={refresh} />}
          <PoolCounts pool={shown} />
          <HistoryCharts pool={name} theme={session.theme} />
          <nav class="tabs" aria-label="Parts of the pool">
            {tabs.map(([key, text]) => (
              <a key={key} href={poolHref(name, key)} aria-current={key === tab ? "page" : undefined}>{text}</a>
            ))}
          </nav>
          {tab === "leases" && <Keys key={`${name} leases`} pool={name} only="leased" changed={refresh} />}
          {tab === "keys" && <Keys key={`${name} keys`} pool={name} only={null} changed={refresh} />}
          {tab === "add" && <AddKeys key={name} pool={shown} changed={refresh} />}
          {tab === "policy" && <PolicyEditor key={name} pool={shown} changed={refresh} />}
          {tab === "events" && <Events key={name} pool={name} />}
        </>
      )}
    </main>
  );
}

function PoolCounts({ pool }: { pool: Pool }) {
  const policy = [
    `leases up to ${setting(pool.lease_ttl_seconds)}`,
    pool.max_hold_seconds === null ? null : `held up to ${setting(pool.max_hold_seconds)}`,
    pool.rest_seconds === 0 ? null : `rest ${setting(pool.rest_seconds)}`,
    pool.keepalive_ttl_seconds === null ? "never purged" : `purged after ${setting(pool.keepalive_ttl_seconds)} without a keep-alive`,
  ];
  return (
    <section aria-label="Counts">
      <Bar counts={pool} label="All keys" />
      <div class="totals">
        {([...STATES, "waiting"] as const).map((name) => (
          <div class="total" key={name}>
            <span class="total-name"><Swatch state={name} />{name}</span>
            <span class="total-value">{count(pool[name])}</span>
          </div>
        ))}
      </div>
      <p class="muted">{counted(pool.total, "key")}{pool.draining_keys > 0 && <>, {count(pool.draining_keys)} of them draining</>}; {policy.filter((part) => part !== null).join(", ")}.</p>
    </section>
  );
}
