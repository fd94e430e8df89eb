// The policy of a pool: each field with its range, and what a change will do.
import { useState } from "preact/hooks";
import { call, type Pool, type PolicyRequest, poolPath, textOf } from "./api";
import { Commands, quoted } from "./commands";
import { Confirm } from "./dialog";
import { DrainCard } from "./drain";
import { counted, setting } from "./format";
import { useSession } from "./session";

type FieldName = "lease_ttl_seconds" | "max_hold_seconds" | "keepalive_ttl_seconds" | "rest_seconds" | "key_length" | "key_prefix" | "max_keys";

interface FieldInfo {
  name: FieldName;
  /** The option of `keypeg pool set`. */
  option: string;
  label: string;
  unit: string;
  nullable: boolean;
  range: [number, number] | null;
  integer?: boolean;
  help: string;
}

const WEEK_S = 604_800;
const FIELDS: FieldInfo[] = [
  { name: "lease_ttl_seconds", option: "--lease-ttl", label: "Longest lease", unit: "seconds", nullable: false, range: [0.001, WEEK_S], help: "From a grant, or from a renewal, to the end of the lease." },
  { name: "max_hold_seconds", option: "--max-hold", label: "Longest hold", unit: "seconds", nullable: true, range: [0.001, WEEK_S], help: "From a grant to the end of its lease, renewals included. Empty: as long as one lease." },
  { name: "rest_seconds", option: "--rest", label: "Rest", unit: "seconds", nullable: false, range: [0, WEEK_S], help: "How long a key rests after each lease." },
  { name: "keepalive_ttl_seconds", option: "--keepalive-ttl", label: "Purge without a keep-alive", unit: "seconds", nullable: true, range: [0.001, WEEK_S], help: "Empty: keys are never purged." },
  { name: "max_keys", option: "--max-keys", label: "Most keys", unit: "keys", nullable: true, range: [1, 1e9], integer: true, help: "Empty: only the limit of the server applies." },
  { name: "key_length", option: "--key-length", label: "Length of generated values", unit: "characters", nullable: false, range: [20, 128], integer: true, help: "After the prefix." },
  { name: "key_prefix", option: "--key-prefix", label: "Prefix of generated values", unit: "", nullable: true, range: null, help: "At most 32 of A–Z a–z 0–9 _ -." },
];

type Draft = Record<FieldName, string>;

function draftOf(pool: Pool): Draft {
  return Object.fromEntries(FIELDS.map(({ name }) => [name, pool[name] === null ? "" : String(pool[name])])) as Draft;
}

type Value = number | string | null;

/** Returns the value of a text, or what is wrong with it. */
function valueOf(field: FieldInfo, text: string): { value: Value } | { error: string } {
  const trimmed = text.trim();
  if (field.range === null) {
    return /^[A-Za-z0-9_-]{0,32}$/.test(trimmed) ? { value: trimmed } : { error: "At most 32 of A–Z a–z 0–9 _ -." };
  }
  const [least, most] = field.range;
  if (trimmed === "") return field.nullable ? { value: null } : { error: `A number of ${least} to ${most}.` };
  const value = Number(trimmed);
  const isAllowed = Number.isFinite(value) && value >= least && value <= most && (!field.integer || Number.isInteger(value));
  return isAllowed ? { value } : { error: `${field.nullable ? "Empty, or a" : "A"}${field.integer ? " whole" : ""} number of ${least} to ${most}.` };
}

/** Returns the option of `keypeg pool set` for a change. */
function optionOf({ field, value }: { field: FieldInfo; value: Value }): string {
  const text = value === null ? "none" : field.unit === "seconds" ? `${value}s` : quoted(String(value));
  return `${field.option}=${text}`;
}

export function PolicyEditor({ pool, changed }: { pool: Pool; changed: () => void }) {
  const { allows, withToken } = useSession();
  const [draft, setDraft] = useState<Draft | null>(null);
  const [outcome, setOutcome] = useState<{ text: string; failed: boolean } | null>(null);
  const [deleting, setDeleting] = useState(false);
  const canEdit = allows("admin");
  const texts = draft ?? draftOf(pool);
  const read = FIELDS.map((field) => ({ field, result: valueOf(field, texts[field.name]) }));
  const changes = read.flatMap(({ field, result }) => ("value" in result && result.value !== pool[field.name] ? [{ field, value: result.value }] : []));
  const error = (name: FieldName) => {
    const result = read.find(({ field }) => field.name === name)?.result;
    return result && "error" in result ? result.error : null;
  };
  const hold = Number(texts.max_hold_seconds);
  const tooShort = texts.max_hold_seconds.trim() !== "" && hold < Number(texts.lease_ttl_seconds);
  const isValid = read.every(({ result }) => "value" in result) && !tooShort;
  const body = Object.fromEntries(changes.map(({ field, value }) => [field.name, value])) as PolicyRequest;
  const path = poolPath(pool.pool);
  const submit = async (event: Event) => {
    event.preventDefault();
    if (!isValid || changes.length === 0) return;
    setOutcome(null);
    try {
      await call("PUT", path, { body, headers: { "if-match": "*" } });
      setOutcome({ text: "The policy is changed.", failed: false });
      setDraft(null);
      changed();
    } catch (failure) {
      setOutcome({ text: textOf(failure), failed: true });
    }
  };
  return (
    <div class="columns">
      <form class="card" onSubmit={submit} aria-label="Policy">
        <h2>Policy</h2>
        {!canEdit && <p class="muted">To change the policy, a token needs the scope <code>admin</code>.</p>}
        <fieldset disabled={!canEdit}>
          <legend class="hidden">Fields</legend>
          {FIELDS.map((field) => {
            const wrong = error(field.name) ?? (field.name === "max_hold_seconds" && tooShort ? "Not shorter than the longest lease." : null);
            return (
              <label class="field" key={field.name}>
                <span>{field.label}{field.unit && <span class="muted"> ({field.unit})</span>}</span>
                <input
                  value={texts[field.name]}
                  inputMode={field.range ? "decimal" : "text"}
                  aria-invalid={wrong !== null}
                  spellcheck={false}
                  autocomplete="off"
                  onInput={(event) => { setDraft({ ...texts, [field.name]: event.currentTarget.value }); setOutcome(null); }}
                />
                <small class={wrong ? "bad" : ""}>{wrong ?? field.help}</small>
              </label>
            );
          })}
        </fieldset>
        {outcome && <p class={outcome.failed ? "error" : "success"} role={outcome.failed ? "alert" : "status"}>{outcome.text}</p>}
        {canEdit && (
          <div class="buttons">
            <button type="button" disabled={draft === null} onClick={() => setDraft(null)}>Undo</button>
            <button type="submit" class="primary" disabled={!isValid || changes.length === 0}>Save</button>
          </div>
        )}
        <Commands withToken={withToken} action={changes.length > 0 ? { method: "PUT", path, body, keypeg: `keypeg pool set ${pool.pool} ${changes.map(optionOf).join(" ")}` } : { method: "GET", path, keypeg: `keypeg show --pool ${pool.pool}` }} />
      </form>
      <div>
        <div class="card" role="status">
          <h2>Effect</h2>
          {changes.length === 0 || !isValid ? <p class="muted">Change a field to see what it does.</p> : (
            <ul class="effects">{changes.map(({ field, value }) => <li key={field.name}>{effect(field.name, pool[field.name], value, pool)}</li>)}</ul>
          )}
          <p class="muted">A change applies to later grants and keep-alives, not to running leases and deadlines.</p>
        </div>
        {canEdit && <DrainCard pool={pool} changed={changed} />}
        {canEdit && pool.pool !== "default" && (
          <div class="card">
            <h2>Delete the pool</h2>
            <p>The pool is deleted with its {counted(pool.total, "key")}, and all leases end.</p>
            <div class="buttons"><button type="button" class="danger" onClick={() => setDeleting(true)}>Delete pool</button></div>
          </div>
        )}
      </div>
      {deleting && (
        <Confirm
          title={`Delete the pool ${pool.pool}?`}
          confirm="Delete pool"
          danger
          typed={pool.pool}
          action={{ method: "DELETE", path, keypeg: `keypeg pool delete ${pool.pool}` }}
          withToken={withToken}
          close={() => setDeleting(false)}
          run={async () => {
            await call("DELETE", path);
            location.hash = "#/";
          }}
        >
          <p>The pool is deleted with {counted(pool.total, "key")} and {counted(pool.leased, "lease")}. This cannot be undone.</p>
        </Confirm>
      )}
    </div>
  );
}

function effect(name: FieldName, before: Value, after: Value, pool: Pool): string {
  const [old, now] = [before, after].map((value) => (typeof value === "number" ? setting(value) : value)) as [string | null, string | null];
  switch (name) {
    case "lease_ttl_seconds":
      return `A new lease lasts at most ${now} instead of ${old}. A request for longer is refused.`;
    case "max_hold_seconds":
      return after === null ? `Renewals no longer extend a lease beyond ${setting(pool.lease_ttl_seconds)}.` : `A holder can renew until ${now} after its grant. Renewals after that are refused.`;
    case "rest_seconds":
      return after === 0 ? "A key is available at once after its lease." : `After each lease a key is not lent for ${now}. With short leases, more keys are needed.`;
    case "keepalive_ttl_seconds":
      return after === null ? "Keys are no longer purged. A key keeps its present deadline until its next keep-alive." : `A key without a keep-alive for ${now} is purged, and its value cannot come back. Clients should send one every ${setting(Math.round((after as number) * 400) / 1000)}.`;
    case "max_keys":
      return after === null ? "Only the limit of the server applies." : (after as number) < pool.total ? `The pool has ${counted(pool.total, "key")} already: none is removed, and none can be added.` : `At most ${counted(after as number, "key")}: adding more is refused.`;
    case "key_length":
      return `Later generated values have ${after} characters after the prefix.`;
    case "key_prefix":
      return after === "" ? "Later generated values have no prefix." : `Later generated values begin with ${after}.`;
  }
}
