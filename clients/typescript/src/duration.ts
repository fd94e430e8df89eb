/** Lengths of time as the command line writes them: `500ms`, `90s`, `1m30s`, `7d`; or seconds. */

import { InvalidInput } from "./errors.js";

/** A number of seconds, or a text with units, such as `"500ms"`, `"90s"`, `"1m30s"` or `"7d"`. */
export type Duration = number | string;

const UNITS: Readonly<Record<string, number>> = { ms: 0.001, s: 1, m: 60, h: 3_600, d: 86_400 };
const PART = /(\d+(?:\.\d+)?)(ms|s|m|h|d)/g;
/** The longest time that a server accepts: 7 days, in seconds. */
export const DURATION_MAX = 604_800;

/** Returns seconds. Throws `InvalidInput`, which names the option and what is allowed. */
export function seconds(name: string, value: Duration, least: number, most: number = DURATION_MAX): number {
  let length = Number.NaN;
  if (typeof value === "number") {
    length = value;
  } else if (typeof value === "string" && value.length < 64 && value.replace(PART, "") === "" && value !== "") {
    length = 0;
    for (const [, number, unit] of value.matchAll(PART)) length += Number(number) * (UNITS[unit ?? ""] ?? Number.NaN);
  }
  if (!(length >= least && length <= most)) {
    throw new InvalidInput(
      `${name} is ${JSON.stringify(value)}: use ${least} to ${most} seconds, or a text such as "90s" or "10m"`,
    );
  }
  // Whole milliseconds, as the server counts.
  return Math.round(length * 1_000) / 1_000;
}
