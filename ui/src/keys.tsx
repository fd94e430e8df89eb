// The keys of a pool, page by page, with filters. The leases are the same list, of leased keys only.
// Values are read one at a time, on request, and hidden again.
import { useEffect, useRef, useState } from "preact/hooks";
import { call, Failure, type Key, type KeyState, keyPath, poolPath, serverNow, textOf } from "./api";
import { Command, Copy } from "./commands";
import { instant, length, visible } from "./format";
import { actionsOf, KeyQuestion, LABEL_MAX, type Question } from "./key_actions";
import { usePoll, useTick } from "./poll";
import { type Session, useSession } from "./session";
import { DRAINING, STATES, StateName } from "./states";

const PAGE = 50;
/** The server has no filter for draining keys: the page reads this number of leased keys and shows those that drain. */
const DRAINING_PAGE = 200;

interface KeyPage {
  keys: Key[];
  next_cursor: string | null;
}

interface Props {
  pool: string;
  only: KeyState | null;
  changed: () => void;
}

/** A state, or the leased keys that are draining. */
type Filter = KeyState | typeof DRAINING;

export function Keys({ pool, only, changed }: Props) {
  useTick(1_000);
  const [state, setState] = useState<Filter | null>(only);
  const [search, setSearch] = useState("");
  const [label, setLabel] = useState("");
  const [cursors, setCursors] = useState<string[]>([]);
  const id = search.trim();
  const cursor = cursors.at(-1);
  const page = JSON.stringify([pool, state, id, label, cursor]);
  const { data, error, refresh } = usePoll<KeyPage>(page, 2_000, (signal) => {
    return id !== "" ? found(pool, id, signal) : listed(pool, { state, label, cursor }, signal);
  });
  // The server has started again: its cursors are new ones.
  const isStale = error instanceof Failure && error.code === "bad_cursor";
  useEffect(() => {
    if (isStale) setCursors([]);
  }, [isStale]);
  const isReadingOn = useNextFound(page, data, (next) => setCursors([...cursors.slice(0, -1), next]));
  const after = () => {
    refresh();
    changed();
  };
  const searched = id !== "" ? "id" : label !== "" ? "label" : null;
  return (
    <section aria-label={only === "leased" ? "Leases" : "Keys"}>
      <div class="tools">
        <label class="field inline">
          <span>State</span>
          <select value={state ?? ""} onChange={(event) => { setState((event.currentTarget.value || null) as Filter | null); setCursors([]); }}>
            {only === null && <option value="">All</option>}
            {(only === null ? [...STATES, DRAINING] : [only, DRAINING]).map((name) => <option key={name} value={name}>{name}</option>)}
          </select>
        </label>
        <label class="field inline">
          <span>Find by key id</span>
          <input type="search" value={search} onInput={(event) => setSearch(event.currentTarget.value)} spellcheck={false} autocomplete="off" />
        </label>
        <label class="field inline">
          <span>Find by label</span>
          <input type="search" value={label} maxLength={LABEL_MAX} onInput={(event) => { setLabel(event.currentTarget.value); setCursors([]); }} spellcheck={false} autocomplete="off" />
        </label>
      </div>
      {error !== null && !isStale && <p class="error" role="alert">{textOf(error)}</p>}
      {isReadingOn && <p class="empty" role="status">Searching…</p>}
      {data && !isReadingOn && (data.keys.length === 0 ? <NoKeys pool={pool} only={only} state={state} searched={searched} more={data.next_cursor !== null || cursors.length > 0} /> : <KeyTable pool={pool} keys={data.keys} only={only} after={after} />)}
      {data && id === "" && (cursors.length > 0 || data.next_cursor !== null) && (
        <div class="buttons pager">
          <button type="button" disabled={cursors.length === 0} onClick={() => setCursors(cursors.slice(0, -1))}>Previous</button>
          <span class="muted">Page {cursors.length + 1}</span>
          <button type="button" disabled={data.next_cursor === null || isReadingOn} onClick={() => data.next_cursor && setCursors([...cursors, data.next_cursor])}>Next</button>
        </div>
      )}
    </section>
  );
}
/** Reads on while a page has no key that matches: the server examines a bounded number of keys for each
 * page. A page that had a match once stays. Returns whether it reads on. */
function useNextFound(page: string, data: KeyPage | null, go: (cursor: string) => void): boolean {
  const shown = useRef("");
  const next = data?.next_cursor ?? null;
  const isEmpty = data !== null && data.keys.length === 0 && next !== null && shown.current !== page;
  useEffect(() => {
    if (data !== null && data.keys.length > 0) shown.current = page;
    if (isEmpty && next !== null) go(next);
  }, [data]);
  return isEmpty;
}

interface Filters {
  state: Filter | null;
  label: string;
  cursor: string | undefined;
}

async function listed(pool: string, { state, label, cursor }: Filters, signal: AbortSignal): Promise<KeyPage> {
  const isDraining = state === DRAINING;
  const query = new URLSearchParams({ limit: String(isDraining ? DRAINING_PAGE : PAGE) });
  if (state !== null) query.set("state", isDraining ? "leased" : state);
  if (label !== "") query.set("label", label);
  if (cursor !== undefined) query.set("cursor", cursor);
  const page = await call<KeyPage>("GET", `${poolPath(pool)}/keys?${query}`, { signal });
  return isDraining ? { ...page, keys: page.keys.filter(({ draining }) => draining) } : page;
}

async function found(pool: string, id: string, signal: AbortSignal): Promise<KeyPage> {
  // No other text is an id, and the server refuses some of it as a path.
  if (!/^[0-9a-z]+$/.test(id)) return { keys: [], next_cursor: null };
  try {
    return { keys: [await call<Key>("GET", keyPath(pool, id), { signal })], next_cursor: null };
  } catch (error) {
    if (error instanceof Failure && error.code === "unknown_key") return { keys: [], next_cursor: null };
    throw error;
  }
}

interface NoKeysProps {
  pool: string;
  only: KeyState | null;
  state: Filter | null;
  searched: "id" | "label" | null;
  more: boolean;
}

function NoKeys({ pool, only, state, searched, more }: NoKeysProps) {
  if (searched === "id") return <p class="empty">No key has this id: it never existed, was deleted, or was purged.</p>;
  if (more) return <p class="empty">No key of the pages read matches.</p>;
  if (searched === "label") return <p class="empty">No key has this label.</p>;
  const command = (text: string) => <Command name="keypeg" text={`keypeg ${text} --pool ${pool} --server ${location.origin}`} />;
  if (state === DRAINING) return <p class="empty">No key is draining.</p>;
  if (only === "leased") return <div class="empty"><p>No key is leased. A client acquires one like this:</p>{command("acquire --holder job-7")}</div>;
  if (state !== null) return <p class="empty">No key is {state}.</p>;
  return <div class="empty"><p>The pool has no keys. Generate three:</p>{command("generate -n 3")}</div>;
}

function KeyTable({ pool, keys, only, after }: { pool: string; keys: Key[]; only: KeyState | null; after: () => void }) {
  const session = useSession();
  const [question, setQuestion] = useState<Question | null>(null);
  return (
    <>
      <div class="scroll" tabIndex={0} role="region" aria-label="Table of keys">
        <table class="key-table">
          <thead>
            <tr>
              <th scope="col">Key id</th>
              <th scope="col">Label</th>
              {only === null && <th scope="col">State</th>}
              <th scope="col">{only === "leased" ? "Holder" : "Holder or reason"}</th>
              <th scope="col" class={only === "leased" ? "number" : ""}>{only === "leased" ? "Held for" : "Until"}</th>
              {only === "leased" && <th scope="col" class="number">Ends in</th>}
              <th scope="col" class="number">{only === "leased" ? "Fencing token" : "Purged in"}</th>
              <th scope="col"><span class="hidden">Actions</span></th>
            </tr>
          </thead>
          <tbody>
            {keys.map((key) => <KeyRow key={key.id} pool={pool} item={key} only={only} session={session} ask={setQuestion} />)}
          </tbody>
        </table>
      </div>
      {question && <KeyQuestion pool={pool} question={question} close={() => setQuestion(null)} after={after} />}
    </>
  );
}

function left(at: string | null): string {
  if (at === null) return "never";
  const seconds = (Date.parse(at) - serverNow()) / 1000;
  return seconds <= 0 ? "now" : length(seconds);
}

interface RowProps {
  pool: string;
  item: Key;
  only: KeyState | null;
  session: Session;
  ask: (question: Question) => void;
}

function KeyRow({ pool, item, only, session, ask }: RowProps) {
  const { lease } = item;
  const who = lease ? lease.holder : item.reason;
  const drainReason = item.draining ? item.reason : null;
  const empty = lease ? "no name given" : "";
  return (
    <tr>
      <th scope="row"><code class="id">{item.id}</code></th>
      <td class="text label" data-name={item.label ? "Label" : ""}>{item.label && <bdi>{visible(item.label)}</bdi>}</td>
      {only === null && <td><StateName state={item.state} /></td>}
      <td class="text" data-name={lease ? "Holder" : item.reason ? "Reason" : ""}>
        {who ? <bdi>{visible(who)}</bdi> : <span class="muted">{empty}</span>}
        {item.draining && <span class="draining">draining{drainReason && <>: <bdi>{visible(drainReason)}</bdi></>}</span>}
      </td>
      {only === "leased"
        ? <td class="number" data-name="Held for" title={lease ? instant(lease.granted_at) : undefined}>{lease ? length(Math.max(0, (serverNow() - Date.parse(lease.granted_at)) / 1000)) : ""}</td>
        : <td class="nowrap" data-name={item.state === "available" ? "" : "Until"}>{untilOf(item)}</td>}
      {only === "leased" && <td class="number" data-name="Ends in">{lease ? left(lease.expires_at) : ""}</td>}
      <td class="number" data-name={only === "leased" ? "Token" : "Purged in"}>{only === "leased" ? lease?.fencing_token : left(item.expires_at)}</td>
      <td class="actions">
        {actionsOf(item, only, session, ask).map(({ text, name, run }) => (
          <button key={text} type="button" class="small" aria-label={name} onClick={run}>{text}</button>
        ))}
        {session.allows("reveal") && only === null && <Reveal pool={pool} id={item.id} />}
      </td>
    </tr>
  );
}

function untilOf(item: Key): string {
  if (item.lease) return `lease: ${left(item.lease.expires_at)}`;
  if (item.rests_until) return `rest: ${left(item.rests_until)}`;
  return item.state === "quarantined" ? "it is put back" : "";
}

const REVEALED_MS = 30_000;

function Reveal({ pool, id }: { pool: string; id: string }) {
  const [value, setValue] = useState<string | null>(null);
  const [error, setError] = useState<string | null>(null);
  useEffect(() => {
    if (value === null) return;
    const timer = setTimeout(() => setValue(null), REVEALED_MS);
    const hidden = () => document.hidden && setValue(null);
    document.addEventListener("visibilitychange", hidden);
    return () => {
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", hidden);
    };
  }, [value]);
  const show = async () => {
    setError(null);
    try {
      setValue((await call<{ key: string }>("POST", `${keyPath(pool, id)}/reveal`)).key);
    } catch (failure) {
      setError(textOf(failure));
    }
  };
  if (value === null) {
    return (
      <>
        <button type="button" class="small" onClick={show} aria-label={`Reveal the value of key ${id}`}>Reveal</button>
        {error !== null && <span class="error" role="alert">{error}</span>}
      </>
    );
  }
  return (
    <span class="secret">
      <code><bdi>{visible(value)}</bdi></code>
      <Copy text={value} what={`the value of key ${id}`} />
      <button type="button" class="small" onClick={() => setValue(null)} aria-label={`Hide the value of key ${id}`}>Hide</button>
    </span>
  );
}
