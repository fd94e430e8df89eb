// The address of what is shown, behind the # of the page, so that a view can be linked and reloaded.
import { useEffect, useState } from "preact/hooks";

export type Tab = "leases" | "keys" | "add" | "policy" | "events";
export const TABS: [Tab, string][] = [
  ["leases", "Leases"],
  ["keys", "Keys"],
  ["add", "Add keys"],
  ["policy", "Policy"],
  ["events", "Events"],
];

export type Route = { view: "pools" } | { view: "pool"; pool: string; tab: Tab };

export function parseRoute(hash: string): Route {
  const [, view, pool, tab] = hash.replace(/^#/, "").split("/");
  if (view === "pools" && pool) {
    const found = TABS.find(([name]) => name === tab);
    let name = pool;
    try {
      name = decodeURIComponent(pool);
    } catch {
      // The name stays as it is; the server refuses it.
    }
    return { view: "pool", pool: name, tab: found ? found[0] : "leases" };
  }
  return { view: "pools" };
}

export function poolHref(pool: string, tab: Tab = "leases"): string {
  return `#/pools/${encodeURIComponent(pool)}/${tab}`;
}

export function useRoute(): Route {
  const [hash, setHash] = useState(location.hash);
  useEffect(() => {
    const changed = () => setHash(location.hash);
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  return parseRoute(hash);
}
