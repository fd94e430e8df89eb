// The actions on one key: which of them its state and the scopes of the token allow, and the question
// of each. Every action has its command for the shell.
import { useState } from "preact/hooks";
import { call, type Key, type KeyState, keyPath } from "./api";
import { type Action, quoted } from "./commands";
import { Confirm } from "./dialog";
import { visible } from "./format";
import { type Session, useSession } from "./session";

export interface Question {
  kind: "release" | "delete" | "quarantine" | "restore" | "label";
  key: Key;
}

interface Offer {
  text: string;
  name: string;
  run: () => void;
}

/** Returns the actions on a key. Further actions are further entries. */
export function actionsOf(key: Key, only: KeyState | null, session: Session, ask: (question: Question) => void): Offer[] {
  const offers: Offer[] = [];
  const offer = (kind: Question["kind"], text: string, name = `${text} key ${key.id}`) => offers.push({ text, name, run: () => ask({ kind, key }) });
  if (session.allows("force")) {
    if (key.state === "leased" || key.state === "resting") offer("release", "Force-release");
    if (key.state === "quarantined") offer("restore", "Put back");
    else if (key.draining) offer("restore", "Cancel drain", `Cancel drain of key ${key.id}`);
    else offer("quarantine", "Quarantine");
  }
  if (session.allows("keys")) {
    offer("label", "Label");
    if (only === null) offer("delete", "Delete");
  }
  return offers;
}

interface QuestionProps {
  pool: string;
  question: Question;
  close: () => void;
  after: () => void;
}

export function KeyQuestion({ question, ...rest }: QuestionProps) {
  const props = { item: question.key, ...rest };
  switch (question.kind) {
    case "quarantine":
      return <Quarantine {...props} />;
    case "label":
      return <Label {...props} />;
    case "release":
    case "delete":
    case "restore":
      return <Plain kind={question.kind} {...props} />;
  }
}

interface ActionProps extends Omit<QuestionProps, "question"> {
  item: Key;
}

function Subject({ item }: { item: Key }) {
  const { label, lease, state } = item;
  return (
    <p>
      <code class="id">{item.id}</code>{label && <> (<bdi>{visible(label)}</bdi>)</>}, {state}{lease?.holder && <> by <bdi>{visible(lease.holder)}</bdi></>}.
    </p>
  );
}

interface PlainTexts {
  title: string;
  confirm: string;
  danger: boolean;
  effect: string;
  action: Action;
}

function textsOf(kind: "release" | "delete" | "restore", pool: string, item: Key): PlainTexts {
  const path = keyPath(pool, item.id);
  switch (kind) {
    case "release":
      return {
        title: "Force-release this key?",
        confirm: "Force-release",
        danger: true,
        effect: releaseEffect(item),
        action: { method: "POST", path: `${path}/release`, keypeg: `keypeg unblock ${item.id} --pool ${pool}` },
      };
    case "delete":
      return {
        title: "Delete this key?",
        confirm: "Delete",
        danger: true,
        effect: "The key is removed for good, and its value cannot come back while the pool exists. A lease on it ends.",
        action: { method: "DELETE", path, keypeg: `keypeg delete ${item.id} --pool ${pool}` },
      };
    case "restore":
      return {
        title: item.draining ? "Cancel the drain of this key?" : "Put this key back?",
        confirm: item.draining ? "Cancel drain" : "Put back",
        danger: false,
        effect: item.draining ? "The lease continues, and the key is not quarantined after it." : "The key becomes available now.",
        action: { method: "DELETE", path: `${path}/quarantine`, keypeg: `keypeg quarantine ${item.id} --undo --pool ${pool}` },
      };
  }
}

function releaseEffect({ state, draining }: Key): string {
  if (state !== "leased") return "The key becomes available now.";
  if (draining) return "The lease ends now, and the key is quarantined.";
  return "The lease ends now, and another client can get the key while its holder may still use it. Stop the holder first.";
}

function Plain({ kind, pool, item, close, after }: ActionProps & { kind: "release" | "delete" | "restore" }) {
  const { withToken } = useSession();
  const { title, confirm, danger, effect, action } = textsOf(kind, pool, item);
  const run = async () => {
    await call(action.method, action.path);
    after();
  };
  return (
    <Confirm title={title} confirm={confirm} danger={danger} action={action} withToken={withToken} close={close} run={run}>
      <Subject item={item} />
      <p>{effect}</p>
    </Confirm>
  );
}

/** The most characters of a reason. */
const REASON_MAX = 256;
/** The most characters of a label. */
export const LABEL_MAX = 128;

function Quarantine({ pool, item, close, after }: ActionProps) {
  const { withToken } = useSession();
  const isLeased = item.state === "leased";
  const [when, setWhen] = useState<"free" | "now">(isLeased ? "free" : "now");
  const [reason, setReason] = useState("");
  const path = `${keyPath(pool, item.id)}/quarantine`;
  const body = { ...(reason === "" ? {} : { reason }), ...(isLeased ? { when } : {}) };
  const options = `${isLeased ? ` --when ${when}` : ""}${reason === "" ? "" : ` --reason=${quoted(reason)}`}`;
  const run = async () => {
    await call("POST", path, { body });
    after();
  };
  return (
    <Confirm
      title="Quarantine this key?"
      confirm={isLeased && when === "free" ? "Drain" : "Quarantine"}
      danger
      action={{ method: "POST", path, body, keypeg: `keypeg quarantine ${item.id}${options} --pool ${pool}` }}
      withToken={withToken}
      close={close}
      run={run}
    >
      <Subject item={item} />
      <p>The key is not lent until it is put back.</p>
      {isLeased && (
        <fieldset class="choices">
          <legend>Start of the quarantine</legend>
          <label class="check"><input type="radio" name="when" checked={when === "free"} onChange={() => setWhen("free")} /> When the lease ends: until then the key is draining</label>
          <label class="check"><input type="radio" name="when" checked={when === "now"} onChange={() => setWhen("now")} /> Now: the lease ends, while its holder may still use the key</label>
        </fieldset>
      )}
      <label class="field">
        <span>Reason <span class="muted">(optional)</span></span>
        <input value={reason} maxLength={REASON_MAX} onInput={(event) => setReason(event.currentTarget.value)} autocomplete="off" />
      </label>
    </Confirm>
  );
}

function Label({ pool, item, close, after }: ActionProps) {
  const { withToken } = useSession();
  const [label, setLabel] = useState(item.label ?? "");
  const path = keyPath(pool, item.id);
  const body = { label: label === "" ? null : label };
  const command = { keypeg: `keypeg label --pool ${pool}`, operands: [item.id, label] };
  const removal = { keypeg: `keypeg label ${item.id} --remove --pool ${pool}` };
  const run = async () => {
    await call("PATCH", path, { body });
    after();
  };
  return (
    <Confirm
      title="Label this key"
      confirm="Save"
      action={{ method: "PATCH", path, body, ...(label === "" ? removal : command) }}
      withToken={withToken}
      close={close}
      run={run}
    >
      <Subject item={item} />
      <label class="field">
        <span>Label</span>
        <input value={label} maxLength={LABEL_MAX} onInput={(event) => setLabel(event.currentTarget.value)} spellcheck={false} autocomplete="off" />
        <small>At most {LABEL_MAX} printable characters. Empty: no label.</small>
      </label>
    </Confirm>
  );
}
