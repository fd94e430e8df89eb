// The events of a pool as they happen. Memory and work have bounds: a ring of the last events, drawn
// a few times a second, whatever their rate.
import { useEffect, useRef, useState } from "preact/hooks";
import { Failure, followEvents, poolPath, type ServerEvent, textOf } from "./api";
import { Commands } from "./commands";
import { count, time, visible } from "./format";
import { useSession } from "./session";

const KEPT_MAX = 500;
const DRAWN_MAX = 200;
const DRAW_EVERY_MS = 250;
const RETRY_MS = 2_000;
const NAMES = ["resync", "generated", "imported", "granted", "renewed", "released", "expired", "quarantined", "restored", "deleted", "purged", "policy", "dropped"];

interface Row extends ServerEvent {
  number: number;
}

/** What is drawn: a copy of the ring, so that pausing is only not to copy. */
interface View {
  rows: Row[];
  seen: number;
}

export function Events({ pool }: { pool: string }) {
  const { withToken } = useSession();
  const ring = useRef<Row[]>([]);
  const seen = useRef(0);
  const [view, setView] = useState<View>({ rows: [], seen: 0 });
  const [paused, setPaused] = useState(false);
  const [status, setStatus] = useState<{ text: string; failed: boolean }>({ text: "Connecting", failed: false });
  const [name, setName] = useState("");
  const [text, setText] = useState("");
  useEffect(() => {
    const abort = new AbortController();
    void follow(pool, abort.signal, setStatus, (event) => {
      seen.current += 1;
      ring.current.push({ ...event, number: seen.current });
      if (ring.current.length > KEPT_MAX * 2) ring.current = ring.current.slice(-KEPT_MAX);
    });
    return () => abort.abort();
  }, [pool]);
  useEffect(() => {
    if (paused) return;
    const draw = () => setView((before) => (before.seen === seen.current ? before : { rows: ring.current.slice(-KEPT_MAX), seen: seen.current }));
    draw();
    const timer = setInterval(draw, DRAW_EVERY_MS);
    return () => clearInterval(timer);
  }, [paused]);
  const wanted = text.trim().toLowerCase();
  const rows = view.rows.filter((row) => (name === "" || row.name === name) && (wanted === "" || searchable(row).includes(wanted)));
  const late = seen.current - view.seen;
  return (
    <section aria-label="Events">
      <div class="tools">
        <button type="button" onClick={() => setPaused(!paused)} aria-pressed={paused}>{paused ? "Continue" : "Pause"}</button>
        <label class="field inline">
          <span>Event</span>
          <select value={name} onChange={(event) => setName(event.currentTarget.value)}>
            <option value="">All</option>
            {NAMES.map((one) => <option key={one} value={one}>{one}</option>)}
          </select>
        </label>
        <label class="field inline">
          <span>Contains</span>
          <input type="search" value={text} onInput={(event) => setText(event.currentTarget.value)} spellcheck={false} autocomplete="off" />
        </label>
        <p class={status.failed ? "bad" : "muted"} role="status">
          {paused ? `Paused; ${count(Math.max(0, late))} newer` : status.text}. {count(view.seen)} since this view opened; the last {KEPT_MAX} are kept.
        </p>
      </div>
      {rows.length === 0 ? <p class="empty">{view.seen === 0 ? "No event yet. Acquire a key, and its grant appears here." : "No kept event matches."}</p> : (
        <div class="scroll events" tabIndex={0} role="region" aria-label="Table of events">
          <table class="event-table">
            <thead><tr><th scope="col">Time</th><th scope="col">Event</th><th scope="col">Key id</th><th scope="col">Details</th></tr></thead>
            <tbody>
              {rows.slice(-DRAWN_MAX).reverse().map((row) => <EventRow key={row.number} row={row} />)}
            </tbody>
          </table>
        </div>
      )}
      <Commands withToken={withToken} action={{ method: "GET", path: `${poolPath(pool)}/events`, keypeg: `keypeg events --follow --pool ${pool}` }} />
    </section>
  );
}

function searchable(row: Row): string {
  return `${row.name} ${JSON.stringify(row.data)}`.toLowerCase();
}

function EventRow({ row }: { row: Row }) {
  const { at, pool: _, key_id: id, ...details } = row.data;
  return (
    <tr>
      <td class="nowrap">{typeof at === "string" ? time(Date.parse(at)) : ""}</td>
      <td>{visible(row.name)}</td>
      <td>{typeof id === "string" && <code class="id">{visible(id)}</code>}</td>
      <td class="text details">
        {Object.entries(details).filter(([, value]) => value !== null).map(([key, value]) => (
          <span key={key}><span class="muted">{visible(key)}</span> <bdi>{textOfValue(key, value)}</bdi></span>
        ))}
      </td>
    </tr>
  );
}

function textOfValue(key: string, value: unknown): string {
  if (Array.isArray(value)) return value.length === 1 ? visible(String(value[0])) : `${count(value.length)} ${key === "labels" ? "labels" : "ids"}`;
  const text = typeof value === "string" ? value : JSON.stringify(value);
  return visible(text.length > 300 ? `${text.slice(0, 300)}…` : text);
}

/** Follows the events, also beyond the end of a stream, until the pool is gone. */
async function follow(
  pool: string,
  signal: AbortSignal,
  status: (status: { text: string; failed: boolean }) => void,
  each: (event: ServerEvent) => void,
): Promise<void> {
  let last: string | null = null;
  let dropped = false;
  while (!signal.aborted && !dropped) {
    try {
      await followEvents(pool, last, signal, (event) => {
        if (event.id !== "") last = event.id;
        dropped ||= event.name === "dropped";
        each(event);
        status({ text: "Following", failed: false });
      });
      status({ text: dropped ? "The pool is deleted" : "The stream ended; connecting again", failed: dropped });
    } catch (error) {
      if (signal.aborted) return;
      status({ text: textOf(error).replace(/\.$/, ""), failed: true });
      if (error instanceof Failure && [401, 403, 404].includes(error.status)) return;
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}
