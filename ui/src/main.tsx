// The page: signs in where the server asks for it, and shows the view that the address names.
import { render } from "preact";
import { useEffect, useMemo, useState } from "preact/hooks";
import { type Access, onSignedOut, setToken, textOf } from "./api";
import { Overview } from "./overview";
import { PoolView } from "./pool";
import { useRoute } from "./route";
import { readAccess, SessionContext, SignIn, toSession } from "./session";

type Theme = "system" | "light" | "dark";
const THEMES: Theme[] = ["system", "light", "dark"];
const THEME_KEY = "keypeg-theme";

function storedTheme(): Theme {
  try {
    return THEMES.find((theme) => theme === localStorage.getItem(THEME_KEY)) ?? "system";
  } catch {
    return "system";
  }
}

/** Returns the chosen theme, the theme that applies, and how to choose. */
function useTheme(): [Theme, string, (theme: Theme) => void] {
  const [theme, setTheme] = useState(storedTheme);
  const [systemIsDark, setSystemIsDark] = useState(() => matchMedia("(prefers-color-scheme: dark)").matches);
  useEffect(() => {
    const query = matchMedia("(prefers-color-scheme: dark)");
    const changed = () => setSystemIsDark(query.matches);
    query.addEventListener("change", changed);
    return () => query.removeEventListener("change", changed);
  }, []);
  const applied = theme === "system" ? (systemIsDark ? "dark" : "light") : theme;
  // Before the children draw: charts read the colours of the theme that applies.
  document.documentElement.dataset.theme = applied;
  const choose = (chosen: Theme) => {
    setTheme(chosen);
    try {
      localStorage.setItem(THEME_KEY, chosen);
    } catch {
      // The choice lasts as long as the page.
    }
  };
  return [theme, applied, choose];
}

function App() {
  const route = useRoute();
  const [theme, applied, chooseTheme] = useTheme();
  const [access, setAccess] = useState<Access | "asks" | null>(null);
  const [error, setError] = useState<string | null>(null);
  useEffect(() => {
    let timer: ReturnType<typeof setTimeout> | undefined;
    const start = async () => {
      try {
        setAccess((await readAccess()) ?? "asks");
        setError(null);
      } catch (failure) {
        setError(textOf(failure));
        timer = setTimeout(() => void start(), 2_000);
      }
    };
    void start();
    return () => clearTimeout(timer);
  }, []);
  useEffect(() => onSignedOut(() => {
    setToken(null);
    setAccess("asks");
  }), []);
  const isSignedIn = access !== null && access !== "asks";
  const session = useMemo(() => (isSignedIn ? toSession(access, applied) : null), [access, applied]);
  useEffect(() => {
    document.title = route.view === "pool" ? `${route.pool} · Keypeg` : "Keypeg";
  }, [route]);
  return (
    <>
      <a class="skip" href="#content" onClick={(event) => { event.preventDefault(); document.getElementById("content")?.focus(); }}>Skip to the content</a>
      <header>
        <a class="brand" href="#/"><Mark />keypeg</a>
        <span class="host">{location.host}</span>
        <span class="gap" />
        <a href="/docs">API</a>
        <label class="theme">
          <span class="hidden">Colours</span>
          <select value={theme} onChange={(event) => chooseTheme(event.currentTarget.value as Theme)}>
            <option value="system">System colours</option>
            <option value="light">Light</option>
            <option value="dark">Dark</option>
          </select>
        </label>
        {session?.access.token != null && (
          <button type="button" class="small" title={`Signed in as ${session.access.token}`} onClick={() => { setToken(null); setAccess("asks"); }}>Sign out</button>
        )}
      </header>
      <div id="content" tabIndex={-1}>
        {error !== null && <main><p class="error" role="alert">{error}</p></main>}
        {access === "asks" && error === null && <SignIn done={setAccess} />}
        {session && (
          <SessionContext.Provider value={session}>
            {!session.allows("read") ? <NoScope name={session.access.token} /> : route.view === "pool" ? <PoolView key={route.pool} name={route.pool} tab={route.tab} /> : <Overview />}
          </SessionContext.Provider>
        )}
      </div>
    </>
  );
}

function NoScope({ name }: { name: string | null }) {
  return (
    <main>
      <h1>Nothing to show</h1>
      <p>The token <code>{name}</code> lacks the scope <code>read</code>: sign in with another token.</p>
    </main>
  );
}

function Mark() {
  return (
    <svg viewBox="0 0 32 32" width="24" height="24" aria-hidden="true">
      <circle cx="12" cy="12" r="6.5" fill="none" stroke="currentColor" stroke-width="3.5" />
      <path d="M17 17l10 10m-4-4l3.5-3.5" fill="none" stroke="currentColor" stroke-width="3.5" stroke-linecap="round" />
    </svg>
  );
}

const root = document.getElementById("app");
if (root) render(<App />, root);
