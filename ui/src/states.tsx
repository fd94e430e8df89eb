// The states of keys: their names, their order, and how a pool looks as a bar. A state is never shown
// by its colour alone.
import type { KeyState } from "./api";
import { count } from "./format";

export const STATES: KeyState[] = ["available", "leased", "resting", "quarantined"];

/** A leased key that is quarantined when its lease ends: a part of the leased keys, not a further state. */
export const DRAINING = "draining";

export type Counts = Record<KeyState, number>;

/** The share of each state of one pool. Each state that has a key is at least visible. */
export function Bar({ counts, label }: { counts: Counts; label: string }) {
  const total = STATES.reduce((sum, state) => sum + counts[state], 0);
  const text = STATES.map((state) => `${count(counts[state])} ${state}`).join(", ");
  return (
    <svg class="bar" role="img" aria-label={`${label}: ${text}`} viewBox="0 0 1000 10" preserveAspectRatio="none">
      <rect class="bar-none" width="1000" height="10" />
      {total > 0 && segments(counts, total)}
    </svg>
  );
}

function segments(counts: Counts, total: number) {
  const least = 12;
  const present = STATES.filter((state) => counts[state] > 0);
  const widths = present.map((state) => Math.max(least, (counts[state] / total) * 1000));
  const scale = 1000 / widths.reduce((sum, width) => sum + width, 0);
  let x = 0;
  return present.map((state, index) => {
    const width = (widths[index] ?? 0) * scale;
    const rect = <rect key={state} class={`fill-${state}`} x={x} width={width} height="10" />;
    x += width;
    return rect;
  });
}

export function StateName({ state }: { state: KeyState }) {
  return (
    <span class="state">
      <Swatch state={state} />
      {state}
    </span>
  );
}

export function Swatch({ state }: { state: KeyState | "waiting" }) {
  return <svg class="swatch" viewBox="0 0 10 10" aria-hidden="true"><rect class={`fill-${state}`} width="10" height="10" rx="2" /></svg>;
}
