// A modal question: the browser keeps the focus inside and gives it back, and Escape is the answer "no".
import type { ComponentChildren } from "preact";
import { useId, useLayoutEffect, useRef, useState } from "preact/hooks";
import { textOf } from "./api";
import { type Action, Commands } from "./commands";

interface Props {
  title: string;
  children: ComponentChildren;
  confirm: string;
  /** Whether the action takes something away. */
  danger?: boolean;
  action: Action;
  withToken: boolean;
  run: () => Promise<void>;
  close: () => void;
  /** A text that must be typed before the action is possible. */
  typed?: string;
}

export function Confirm({ title, children, confirm, danger, action, withToken, run, close, typed }: Props) {
  const dialog = useRef<HTMLDialogElement>(null);
  const id = useId();
  const [error, setError] = useState<string | null>(null);
  const [running, setRunning] = useState(false);
  const [text, setText] = useState("");
  useLayoutEffect(() => {
    const element = dialog.current;
    element?.showModal();
    // A dialog that is closed before it leaves the page gives the focus back at once.
    return () => element?.close();
  }, []);
  const submit = async (event: Event) => {
    event.preventDefault();
    if (running) return;
    setRunning(true);
    setError(null);
    try {
      await run();
      close();
    } catch (failure) {
      setError(textOf(failure));
      setRunning(false);
    }
  };
  return (
    <dialog ref={dialog} aria-labelledby={id} onCancel={(event) => { event.preventDefault(); close(); }}>
      <form onSubmit={submit}>
        <h2 id={id}>{title}</h2>
        {children}
        {typed !== undefined && (
          <label class="field">
            <span>Type <code>{typed}</code> to confirm</span>
            <input value={text} onInput={(event) => setText(event.currentTarget.value)} autocomplete="off" />
          </label>
        )}
        {error !== null && <p class="error" role="alert">{error}</p>}
        <div class="buttons">
          <button type="button" onClick={close}>Cancel</button>
          <button type="submit" class={danger ? "danger" : "primary"} disabled={running || (typed !== undefined && text !== typed)}>
            {confirm}
          </button>
        </div>
        <Commands action={action} withToken={withToken} />
      </form>
    </dialog>
  );
}
