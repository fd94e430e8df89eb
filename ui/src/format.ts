// Numbers, lengths of time and instants as text. Each has one form in the whole dashboard.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });

export function count(value: number): string {
  return whole.format(value);
}

/** A number of things: `noun` is the word for one of them. */
export function counted(value: number, noun: string): string {
  return `${count(value)} ${noun}${value === 1 ? "" : "s"}`;
}

/** What the leases of a draining pool do. */
export function leasesRunOn(leased: number): string {
  if (leased === 0) return "no lease runs";
  return `${counted(leased, "lease")} ${leased === 1 ? "runs" : "run"} on`;
}

/** A short form for narrow places: 1 234, 12.3k, 4.5M. */
export function short(value: number): string {
  if (value < 10_000) return count(value);
  if (value < 1_000_000) return `${(value / 1_000).toFixed(value < 100_000 ? 1 : 0)}k`;
  return `${(value / 1_000_000).toFixed(1)}M`;
}

/** A number per second. */
export function rate(value: number): string {
  return value >= 10 || Number.isInteger(value) ? short(Math.round(value)) : value.toFixed(1);
}

/** A length of time in seconds. */
export function length(seconds: number): string {
  if (seconds < 0.0005) return "0 s";
  if (seconds < 1) return `${Math.round(seconds * 1_000)} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${String(Math.floor(seconds % 60)).padStart(2, "0")} s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${String(minutes % 60).padStart(2, "0")} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** A setting in seconds, without loss. */
export function setting(seconds: number | null): string {
  if (seconds === null) return "none";
  for (const [unit, size] of [["d", 86_400], ["h", 3_600], ["min", 60]] as const) {
    if (seconds >= size && seconds % size === 0) return `${seconds / size} ${unit}`;
  }
  return `${seconds} s`;
}

/** The time of day, for instants of the last hours. */
export function time(ms: number): string {
  return clock.format(ms);
}

/** Day and time. */
export function instant(text: string): string {
  return day.format(Date.parse(text));
}

/** Characters that a reader does not see, or that change the order of others, become visible. */
export function visible(text: string): string {
  return text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\u034f\u115f\u1160\u3164\uffa0]/gu, (character) => {
    return `\u27e8U+${(character.codePointAt(0) ?? 0).toString(16).toUpperCase().padStart(4, "0")}\u27e9`;
  });
}
