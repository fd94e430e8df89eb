// The keys of a pool, page by page, and what can be done with each. The leases are the same list,
// of leased keys only. Values are read one at a time, on request, and hidden again.
import { useEffect, useState } from "preact/hooks";
import { call, Failure, type Key, type KeyState, keyPath, poolPath, serverNow, textOf } from "./api";
import { Command, Copy } from "./commands";
import { Confirm } from "./dialog";
import { instant, length, visible } from "./format";
import { usePoll, useTick } from "./poll";
import { type Session, useSession } from "./session";
import { STATES, StateName } from "./states";

const PAGE = 50;

interface KeyPage {
  keys: Key[];
  next_cursor: string | null;
}

interface Props {
  pool: string;
  only: KeyState | null;
  changed: () => void;
}

export function Keys({ pool, only, changed }: Props) {
  useTick(1_000);
  const [state, setState] = useState<KeyState | null>(only);
  const [search, setSearch] = useState("");
  const [cursors, setCursors] = useState<string[]>([]);
  const id = search.trim();
  const cursor = cursors.at(-1);
  const { data, error, refresh } = usePoll<KeyPage>(`${pool} ${state} ${id} ${cursor}`, 2_000, async (signal) => {
    if (id !== "") return found(pool, id, signal);
    const query = new URLSearchParams({ limit: String(PAGE) });
    if (state !== null) query.set("state", state);
    if (cursor !== undefined) query.set("cursor", cursor);
    return call<KeyPage>("GET", `${poolPath(pool)}/keys?${query}`, { signal });
  });
  // The server has started again: its cursors are new ones.
  const isStale = error instanceof Failure && error.code === "bad_cursor";
  useEffect(() => {
    if (isStale) setCursors([]);
  }, [isStale]);
  const after = () => {
    refresh();
    changed();
  };
  return (
    <section aria-label={only === "leased" ? "Leases" : "Keys"}>
      <div class="tools">
        {only === null && (
          <label class="field inline">
            <span>State</span>
            <select value={state ?? ""} onChange={(event) => { setState((event.currentTarget.value || null) as KeyState | null); setCursors([]); }}>
              <option value="">All</option>
              {STATES.map((name) => <option key={name} value={name}>{name}</option>)}
            </select>
          </label>
        )}
        <label class="field inline">
          <span>Find by key id</span>
          <input type="search" value={search} onInput={(event) => setSearch(event.currentTarget.value)} spellcheck={false} autocomplete="off" />
        </label>
      </div>
      {error !== null && !isStale && <p class="error" role="alert">{textOf(error)}</p>}
      {data && (data.keys.length === 0 ? <NoKeys pool={pool} only={only} state={state} searched={id !== ""} more={data.next_cursor !== null} /> : <KeyTable pool={pool} keys={data.keys} only={only} after={after} />)}
      {data && (cursors.length > 0 || data.next_cursor !== null) && (
        <div class="buttons pager">
          <button type="button" disabled={cursors.length === 0} onClick={() => setCursors(cursors.slice(0, -1))}>Previous</button>
          <span class="muted">Page {cursors.length + 1}</span>
          <button type="button" disabled={data.next_cursor === null} onClick={() => data.next_cursor && setCursors([...cursors, data.next_cursor])}>Next</button>
        </div>
      )}
    </section>
  );
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
  state: KeyState | null;
  searched: boolean;
  more: boolean;
}

function NoKeys({ pool, only, state, searched, more }: NoKeysProps) {
  if (searched) return <p class="empty">No key has this id: it never existed, was deleted, or was purged.</p>;
  if (more) return <p class="empty">No such key on this page; the next page can have some.</p>;
  const command = (text: string) => <Command name="keypeg" text={`keypeg ${text} --pool ${pool} --server ${location.origin}`} />;
  if (only === "leased") return <div class="empty"><p>No key is leased. A client acquires one like this:</p>{command("acquire --holder job-7")}</div>;
  if (state !== null) return <p class="empty">No key is {state}.</p>;
  return <div class="empty"><p>The pool has no keys. Generate three:</p>{command("generate -n 3")}</div>;
}

type Question = { kind: "release" | "delete"; key: Key };

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
      {question && <KeyQuestion pool={pool} question={question} session={session} close={() => setQuestion(null)} after={after} />}
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
  const empty = lease ? "no name given" : "";
  return (
    <tr>
      <th scope="row"><code class="id">{item.id}</code></th>
      {only === null && <td><StateName state={item.state} /></td>}
      <td class="text" data-name={lease ? "Holder" : item.reason ? "Reason" : ""}>{who ? <bdi>{visible(who)}</bdi> : <span class="muted">{empty}</span>}</td>
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
  return item.state === "quarantined" ? "a force-release" : "";
}

/** What can be done with a key. Further actions on one key are further entries. */
function actionsOf(key: Key, only: KeyState | null, session: Session, ask: (question: Question) => void) {
  const actions: { text: string; name: string; run: () => void }[] = [];
  if (key.state !== "available" && session.allows("force")) {
    actions.push({ text: "Force-release", name: `Force-release key ${key.id}`, run: () => ask({ kind: "release", key }) });
  }
  if (only === null && session.allows("keys")) {
    actions.push({ text: "Delete", name: `Delete key ${key.id}`, run: () => ask({ kind: "delete", key }) });
  }
  return actions;
}

interface QuestionProps {
  pool: string;
  question: Question;
  session: Session;
  close: () => void;
  after: () => void;
}

function KeyQuestion({ pool, question: { kind, key }, session, close, after }: QuestionProps) {
  const isRelease = kind === "release";
  const path = keyPath(pool, key.id);
  const action = isRelease
    ? { method: "POST", path: `${path}/release`, keypeg: `keypeg unblock ${key.id} --pool ${pool}` }
    : { method: "DELETE", path, keypeg: `keypeg delete ${key.id} --pool ${pool}` };
  const holder = key.lease?.holder;
  return (
    <Confirm
      title={isRelease ? "Force-release this key?" : "Delete this key?"}
      confirm={isRelease ? "Force-release" : "Delete"}
      danger
      action={action}
      withToken={session.withToken}
      close={close}
      run={async () => {
        await call(action.method, action.path);
        after();
      }}
    >
      <p><code class="id">{key.id}</code>, {key.state}{holder && <> by <bdi>{visible(holder)}</bdi></>}.</p>
      <p>
        {isRelease
          ? key.state === "leased"
            ? "The lease ends now, and another client can get the key while its holder may still use it. Stop the holder first."
            : "The key becomes available now."
          : "The key is removed for good, and its value cannot come back while the pool exists. A lease on it ends."}
      </p>
    </Confirm>
  );
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
