// Who looks: the access token, and what it allows. The token is in memory alone, so reloading the
// page signs out.
import { createContext } from "preact";
import { useContext, useState } from "preact/hooks";
import { type Access, call, Failure, hasToken, setToken, textOf } from "./api";

export type Scope = "read" | "lend" | "keys" | "force" | "reveal" | "verify" | "metrics" | "admin";

export interface Session {
  access: Access;
  /** Whether requests need a token. */
  withToken: boolean;
  allows: (scope: Scope) => boolean;
  theme: string;
}

export const SessionContext = createContext<Session | null>(null);

export function useSession(): Session {
  const session = useContext(SessionContext);
  if (!session) throw new Error("no session");
  return session;
}

/** Reads what the present token, or none, allows; `null` if the server asks for a token. */
export async function readAccess(): Promise<Access | null> {
  try {
    return await call<Access>("GET", "/v1/access");
  } catch (error) {
    if (error instanceof Failure && error.status === 401) return null;
    throw error;
  }
}

export function toSession(access: Access, theme: string): Session {
  return { access, withToken: hasToken(), allows: (scope) => access.scopes.includes(scope), theme };
}

export function SignIn({ done }: { done: (access: Access) => void }) {
  const [text, setText] = useState("");
  const [error, setError] = useState<string | null>(null);
  const submit = async (event: Event) => {
    event.preventDefault();
    const value = text.trim();
    if (!/^[\x21-\x7e]+$/.test(value)) {
      setError("A token consists of visible ASCII characters, without blanks.");
      return;
    }
    setToken(value);
    try {
      const access = await readAccess();
      if (access) {
        setText("");
        done(access);
        return;
      }
      setError("The server does not know this token, or it has expired.");
    } catch (failure) {
      setError(textOf(failure));
    }
    setToken(null);
  };
  return (
    <main class="sign-in">
      <form onSubmit={submit} class="card">
        <h1>Sign in</h1>
        <p>This server has access tokens. The page keeps the token in memory alone: reloading signs out.</p>
        <label class="field">
          <span>Access token</span>
          <input type="password" value={text} onInput={(event) => setText(event.currentTarget.value)} autocomplete="off" spellcheck={false} autofocus />
        </label>
        {error !== null && <p class="error" role="alert">{error}</p>}
        <div class="buttons"><button type="submit" class="primary" disabled={text.trim() === ""}>Sign in</button></div>
        <p class="muted">No token? An operator makes one with <code>keypeg token new</code>.</p>
      </form>
    </main>
  );
}
