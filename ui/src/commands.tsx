// An action as commands: what to paste into a shell for the same effect.
import { useState } from "preact/hooks";

export interface Action {
  method: string;
  path: string;
  body?: unknown;
  /** The same action by the command line. */
  keypeg: string;
  /** Words after the options of that command, which can begin with a hyphen. */
  operands?: string[];
}

/** Quotes a word for a shell. */
export function quoted(word: string): string {
  return /^[A-Za-z0-9_./:@=+,-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;
}

function curl(action: Action, withToken: boolean): string {
  const parts = ["curl", "-sS"];
  if (action.method !== "GET") parts.push("-X", action.method);
  parts.push(quoted(`${location.origin}${action.path}`));
  if (withToken) parts.push("-H", `"Authorization: Bearer $KEYPEG_TOKEN"`);
  if (action.body !== undefined) {
    parts.push("-H", quoted("content-type: application/json"), "-d", quoted(JSON.stringify(action.body)));
  }
  return parts.join(" ");
}

function keypeg(action: Action): string {
  const operands = action.operands === undefined ? "" : ` -- ${action.operands.map(quoted).join(" ")}`;
  return `${action.keypeg} --server ${quoted(location.origin)}${operands}`;
}

export function Commands({ action, withToken }: { action: Action; withToken: boolean }) {
  return (
    <details class="commands">
      <summary>As a command</summary>
      <Command name="keypeg" text={keypeg(action)} />
      <Command name="curl" text={curl(action, withToken)} />
    </details>
  );
}

export function Command({ name, text }: { name: string; text: string }) {
  return (
    <div class="command">
      <span class="command-name">{name}</span>
      <code tabIndex={0}>{text}</code>
      <Copy text={text} what={`the command for ${name}`} />
    </div>
  );
}

/** A button that copies a text. `what` names it for readers of the screen. */
export function Copy({ text, what }: { text: string; what: string }) {
  const [state, setState] = useState<"ready" | "copied" | "failed">("ready");
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      setState("copied");
    } catch {
      // Browsers allow it over HTTPS and on loopback addresses only.
      setState("failed");
    }
    setTimeout(() => setState("ready"), 2_000);
  };
  const label = { ready: "Copy", copied: "Copied", failed: "Not allowed" }[state];
  return (
    <button type="button" class="small" onClick={copy} aria-label={`${label}: ${what}`}>
      {label}
    </button>
  );
}
