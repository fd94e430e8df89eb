// The charts of a pool, or of all pools: reads 15 minutes once, then the last seconds, and joins them.
import { call, type History, poolPath } from "./api";
import { Chart } from "./chart";
import { count, length, rate, setting } from "./format";
import { usePoll } from "./poll";

const SECONDS = 900;
const EVERY_MS = 2_000;
/** The last seconds to read: more than a poll takes, so that a late one leaves no gap. */
const TAIL_SECONDS = 20;

type Column = (number | null)[];
const COLUMNS = ["grants", "refusals", "expiries", "waited_seconds", "waiting"] as const;

interface Joined {
  times: number[];
  columns: Record<(typeof COLUMNS)[number], Column>;
}

/** Appends the seconds of `tail` to `before`; `null` if there is a gap between them. */
export function join(before: Joined, tail: Joined): Joined | null {
  const first = tail.times[0];
  const last = before.times.at(-1);
  if (first === undefined) return before;
  if (last === undefined || first > last + 1.5) return null;
  // Each second has an instant close to a whole one apart from the next; half a second decides.
  const kept = before.times.findIndex((time) => time > first - 0.5);
  const end = kept < 0 ? before.times.length : kept;
  const from = Math.max(0, end + tail.times.length - SECONDS);
  const columns = Object.fromEntries(
    COLUMNS.map((name) => [name, [...before.columns[name].slice(from, end), ...tail.columns[name]]]),
  ) as Joined["columns"];
  return { times: [...before.times.slice(from, end), ...tail.times], columns };
}

function joined(history: History): Joined {
  const start = Date.parse(history.from_at) / 1000;
  const columns = Object.fromEntries(COLUMNS.map((name) => [name, history[name]])) as Joined["columns"];
  return { times: history.grants.map((_, index) => start + index), columns };
}

/** Means of 5 seconds: a line of single seconds is noise at this width. */
function smooth(column: Column): Column {
  return column.map((_, index) => {
    const near = column.slice(Math.max(0, index - 4), index + 1).filter((value) => value !== null);
    return near.length === 0 ? null : near.reduce((sum, value) => sum + value, 0) / near.length;
  });
}

function sum(column: Column): number {
  return column.reduce<number>((total, value) => total + (value ?? 0), 0);
}

export function HistoryCharts({ pool, theme }: { pool: string | null; theme: string }) {
  const path = pool === null ? "/v1/history" : `${poolPath(pool)}/history`;
  const { data } = usePoll<Joined>(path, EVERY_MS, async (signal, last) => {
    const read = async (seconds: number) => joined(await call<History>("GET", `${path}?seconds=${seconds}`, { signal }));
    const next = last && last.times.length > 0 ? join(last, await read(TAIL_SECONDS)) : null;
    return next ?? read(SECONDS);
  });
  const empty: Joined = { times: [], columns: { grants: [], refusals: [], expiries: [], waited_seconds: [], waiting: [] } };
  const { times, columns } = data ?? empty;
  const waits = columns.waited_seconds.map((waited, index) => {
    const grants = columns.grants[index];
    return waited === null || grants == null ? null : grants === 0 ? 0 : waited / grants;
  });
  const grants = sum(columns.grants);
  const meanWait = grants === 0 ? 0 : sum(columns.waited_seconds) / grants;
  const perSecond = { unit: "per second", times, show: rate, theme };
  const span = times.length < 60 || times.length % 60 === 0 ? setting(times.length) : length(times.length);
  const total = (column: Column) => `${count(sum(column))} in ${span}`;
  return (
    <div class="charts">
      <Chart {...perSecond} title="Grants per second" values={smooth(columns.grants)} colour="leased" summary={total(columns.grants)} />
      <Chart {...perSecond} title="Refusals per second" values={smooth(columns.refusals)} colour="quarantined" summary={total(columns.refusals)} />
      <Chart {...perSecond} title="Expiries per second" values={smooth(columns.expiries)} colour="resting" summary={total(columns.expiries)} />
      <Chart
        {...perSecond}
        title="Wait for a key"
        unit="on average"
        values={smooth(waits)}
        show={length}
        colour="waiting"
        summary={`${length(meanWait)} on average`}
      />
    </div>
  );
}
