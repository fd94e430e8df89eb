// Generates keys, and imports values that are checked line by line before any is sent. New values
// stay hidden until asked for, and leave the memory of the page with this view.
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { call, Failure, type NewKey, type Pool, poolPath, textOf } from "./api";
import { Commands, Copy } from "./commands";
import { count, counted, setting, visible } from "./format";
import { BATCH_VALUES_MAX, batches, checkLines } from "./import_check";
import { useSession } from "./session";

interface Props {
  pool: Pool;
  changed: () => void;
}

export function AddKeys(props: Props) {
  return (
    <div class="columns">
      <Generate {...props} />
      <Import {...props} />
    </div>
  );
}

/** A new Idempotency-Key: a repeat of the same request after a lost answer adds nothing. */
function idempotencyKey(): string {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

function Generate({ pool, changed }: Props) {
  const { withToken } = useSession();
  const [text, setText] = useState("1");
  const [keys, setKeys] = useState<NewKey[] | null>(null);
  const [error, setError] = useState<string | null>(null);
  const [running, setRunning] = useState(false);
  const number = Number(text);
  const isValid = Number.isInteger(number) && number >= 1 && number <= BATCH_VALUES_MAX;
  const path = `${poolPath(pool.pool)}/keys`;
  const attempt = useRef<{ number: number; key: string } | null>(null);
  const submit = async (event: Event) => {
    event.preventDefault();
    if (!isValid || running) return;
    setRunning(true);
    setError(null);
    if (attempt.current?.number !== number) attempt.current = { number, key: idempotencyKey() };
    try {
      const made = await call<{ keys: NewKey[] }>("POST", path, { body: { count: number }, headers: { "idempotency-key": attempt.current.key } });
      attempt.current = null;
      setKeys(made.keys);
      changed();
    } catch (failure) {
      if (failure instanceof Failure && failure.status !== 0 && failure.status < 500) attempt.current = null;
      setError(textOf(failure));
    }
    setRunning(false);
  };
  return (
    <form class="card" onSubmit={submit} aria-label="Generate keys">
      <h2>Generate</h2>
      <p>The server draws random values of {pool.key_length} characters{pool.key_prefix && <> after <code>{pool.key_prefix}</code></>}.</p>
      <label class="field">
        <span>How many</span>
        <input inputMode="numeric" value={text} onInput={(event) => setText(event.currentTarget.value.trim())} aria-invalid={!isValid} />
        <small>1 to {count(BATCH_VALUES_MAX)}.</small>
      </label>
      {pool.keepalive_ttl_seconds !== null && <p class="muted">A key is purged {setting(pool.keepalive_ttl_seconds)} after its last keep-alive.</p>}
      {error !== null && <p class="error" role="alert">{error}</p>}
      <div class="buttons"><button type="submit" class="primary" disabled={!isValid || running}>Generate</button></div>
      {keys && <NewKeys keys={keys} forget={() => setKeys(null)} />}
      <Commands withToken={withToken} action={{ method: "POST", path, body: { count: isValid ? number : 1 }, keypeg: `keypeg generate -n ${isValid ? number : 1} --pool ${pool.pool}` }} />
    </form>
  );
}

const SHOWN_MAX = 100;

function NewKeys({ keys, forget }: { keys: NewKey[]; forget: () => void }) {
  const [isShown, setShown] = useState(false);
  const text = useMemo(() => keys.map(({ key }) => `${key}\n`).join(""), [keys]);
  return (
    <div class="new-keys" role="status">
      <p><strong>{counted(keys.length, "key")} generated.</strong> The values are in this page alone until you leave it.</p>
      <div class="buttons">
        <button type="button" onClick={() => setShown(!isShown)} aria-expanded={isShown}>{isShown ? "Hide values" : "Show values"}</button>
        <Copy text={text} what="all new values" />
        <Download text={text} />
        <button type="button" onClick={forget}>Done</button>
      </div>
      {isShown && (
        <ul class="values">
          {keys.slice(0, SHOWN_MAX).map(({ id, key }) => <li key={id}><code>{key}</code></li>)}
          {keys.length > SHOWN_MAX && <li class="muted">{count(keys.length - SHOWN_MAX)} more: copy or download them.</li>}
        </ul>
      )}
    </div>
  );
}

function Download({ text }: { text: string }) {
  const save = () => {
    const url = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
    const link = document.createElement("a");
    link.href = url;
    link.download = "keys.txt";
    link.click();
    URL.revokeObjectURL(url);
  };
  return <button type="button" onClick={save}>Download</button>;
}

const ERRORS_MAX = 20;
const FILE_BYTES_MAX = 64 << 20;

interface Progress {
  done: number;
  all: number;
}

function Import({ pool, changed }: Props) {
  const { allows, withToken } = useSession();
  const [text, setText] = useState("");
  const [file, setFile] = useState<{ name: string; text: string } | null>(null);
  const [skipComments, setSkipComments] = useState(false);
  const [keepalive, setKeepalive] = useState(true);
  const [allowRetired, setAllowRetired] = useState(false);
  const [progress, setProgress] = useState<Progress | null>(null);
  const [outcome, setOutcome] = useState<{ text: string; failed: boolean } | null>(null);
  const abort = useRef(new AbortController());
  useEffect(() => () => abort.current.abort(), []);
  const source = file?.text ?? text;
  const checked = useMemo(() => checkLines(source, skipComments), [source, skipComments]);
  const path = `${poolPath(pool.pool)}/keys`;
  const isReady = checked.values.length > 0 && checked.errors.length === 0 && progress === null;
  const options = { ...(keepalive ? {} : { keepalive }), ...(allowRetired ? { allow_retired: true } : {}) };
  const flags = `${skipComments ? " --skip-comments" : ""}${keepalive ? "" : " --no-keepalive"}${allowRetired ? " --allow-retired" : ""}`;
  const choose = async (chosen: File | undefined) => {
    setOutcome(null);
    if (!chosen) return setFile(null);
    if (chosen.size > FILE_BYTES_MAX) return setOutcome({ text: "The file has more than 64 MiB: use keypeg import.", failed: true });
    setFile({ name: chosen.name, text: await chosen.text() });
  };
  const submit = async (event: Event) => {
    event.preventDefault();
    if (!isReady) return;
    setOutcome(null);
    let done = 0;
    const all = checked.values.length;
    try {
      for (const end of batches(checked.values)) {
        setProgress({ done, all });
        const body = { values: checked.values.slice(done, end), ...options };
        await sendOnce(path, body, abort.current.signal);
        done = end;
      }
      setOutcome({ text: `${counted(all, "key")} imported.`, failed: false });
      setText("");
      setFile(null);
    } catch (failure) {
      if (!abort.current.signal.aborted) setOutcome({ text: `${reasonOf(failure, checked.lines, done)} ${count(done)} of ${count(all)} values are imported.`, failed: true });
    }
    setProgress(null);
    if (done > 0) changed();
  };
  return (
    <form class="card" onSubmit={submit} aria-label="Import values">
      <h2>Import</h2>
      <p>One value on each line. All lines are checked before any is sent.</p>
      {file === null ? (
        <label class="field">
          <span>Values</span>
          <textarea rows={6} value={text} onInput={(event) => { setText(event.currentTarget.value); setOutcome(null); }} spellcheck={false} autocomplete="off" />
        </label>
      ) : (
        <p>File <bdi>{visible(file.name)}</bdi> <button type="button" class="small" onClick={() => setFile(null)}>Remove</button></p>
      )}
      <label class="field">
        <span>Or a file</span>
        <input type="file" onChange={(event) => { void choose(event.currentTarget.files?.[0]); event.currentTarget.value = ""; }} />
      </label>
      <label class="check"><input type="checkbox" checked={skipComments} onChange={(event) => setSkipComments(event.currentTarget.checked)} /> Skip lines that begin with #</label>
      {pool.keepalive_ttl_seconds !== null && (
        <label class="check">
          <input type="checkbox" checked={!keepalive} onChange={(event) => setKeepalive(!event.currentTarget.checked)} />
          <span>Never purge these keys. Without this, each is purged {setting(pool.keepalive_ttl_seconds)} after its last keep-alive.</span>
        </label>
      )}
      {allows("admin") && (
        <label class="check">
          <input type="checkbox" checked={allowRetired} onChange={(event) => setAllowRetired(event.currentTarget.checked)} />
          <span>Bring back values that were deleted or purged. A former holder may still use such a value.</span>
        </label>
      )}
      <Report checked={checked} />
      {progress && <label class="field"><span>{count(progress.done)} of {count(progress.all)}</span><progress value={progress.done} max={progress.all} /></label>}
      {outcome && <p class={outcome.failed ? "error" : "success"} role={outcome.failed ? "alert" : "status"}>{outcome.text}</p>}
      <div class="buttons"><button type="submit" class="primary" disabled={!isReady}>Import{checked.values.length > 0 && checked.errors.length === 0 ? ` ${count(checked.values.length)}` : ""}</button></div>
      <Commands withToken={withToken} action={{ method: "POST", path, body: { values: ["…"], ...options }, keypeg: `keypeg import FILE${flags} --pool ${pool.pool}` }} />
    </form>
  );
}

/** Sends a batch; after a lost answer, again with the same Idempotency-Key. */
async function sendOnce(path: string, body: unknown, signal: AbortSignal): Promise<void> {
  const headers = { "idempotency-key": idempotencyKey() };
  for (let attempt = 0; ; attempt += 1) {
    try {
      await call("POST", path, { body, headers, signal });
      return;
    } catch (failure) {
      const again = failure instanceof Failure && (failure.status === 0 || failure.status === 503) && attempt < 5;
      if (!again) throw failure;
      await new Promise((resolve) => setTimeout(resolve, 500 * 2 ** attempt));
    }
  }
}

function reasonOf(failure: unknown, lines: number[], done: number): string {
  const index = failure instanceof Failure ? failure.problem.index : undefined;
  if (typeof index !== "number") return textOf(failure);
  return `Line ${lines[done + index]}: ${textOf(failure)}`;
}

function Report({ checked: { values, errors, skipped } }: { checked: ReturnType<typeof checkLines> }) {
  if (values.length + errors.length === 0) return null;
  return (
    <div class="report" role="status">
      <p>
        {counted(values.length, "value")}{skipped > 0 && `, ${counted(skipped, "line")} skipped`}
        {errors.length > 0 && <>, <strong class="bad">{count(errors.length)} invalid</strong>: nothing is sent until they are corrected</>}.
      </p>
      {errors.length > 0 && (
        <ul>
          {errors.slice(0, ERRORS_MAX).map(({ line, text }) => <li key={line}><span class="number">Line {line}:</span> {text}</li>)}
          {errors.length > ERRORS_MAX && <li class="muted">{count(errors.length - ERRORS_MAX)} more.</li>}
        </ul>
      )}
    </div>
  );
}
