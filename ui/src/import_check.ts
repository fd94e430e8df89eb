// The values of an import, one on each line: the same rules as `keypeg import`. A credential must
// become one key, so blanks at the ends and invisible characters are errors. No message has a value.

export const VALUE_BYTES_MAX = 4096;
/** The most values, and the most bytes of values as JSON, of one request. */
export const BATCH_VALUES_MAX = 10_000;
const BATCH_BYTES_MAX = 7_000_000;

export interface LineError {
  line: number;
  text: string;
}

export interface Checked {
  values: string[];
  /** The number of the line of each value. */
  lines: number[];
  errors: LineError[];
  /** Lines without a value: empty ones and comments. */
  skipped: number;
}

const encoder = new TextEncoder();

/** Checks a text. At most `errorsMax` errors have a text; all count. */
export function checkLines(text: string, skipComments: boolean): Checked {
  const checked: Checked = { values: [], lines: [], errors: [], skipped: 0 };
  const first = new Map<string, number>();
  const lines = text.replace(/^\uFEFF/, "").split("\n");
  lines.forEach((raw, index) => {
    const line = index + 1;
    const value = raw.endsWith("\r") ? raw.slice(0, -1) : raw;
    const isComment = value.trimStart().startsWith("#");
    if (value === "" || (isComment && skipComments)) {
      if (value !== "" || index < lines.length - 1) checked.skipped += 1;
      return;
    }
    const error = errorOf(value, isComment) ?? duplicate(first.get(value));
    if (error !== null) {
      checked.errors.push({ line, text: error });
      return;
    }
    first.set(value, line);
    checked.values.push(value);
    checked.lines.push(line);
  });
  return checked;
}

function duplicate(first: number | undefined): string | null {
  return first === undefined ? null : `The same value as in line ${first}.`;
}

function errorOf(value: string, isComment: boolean): string | null {
  if (encoder.encode(value).length > VALUE_BYTES_MAX) return `The value has more than ${VALUE_BYTES_MAX} bytes.`;
  if (value.trim() === "") return "The line has only blanks: remove it.";
  const invisible = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/u.exec(value);
  if (invisible) {
    const number = (invisible[0].codePointAt(0) ?? 0).toString(16).toUpperCase().padStart(4, "0");
    const hint = invisible[0] === "\t" ? "keep one value on each line" : "remove it";
    return `The value contains the invisible character U+${number}: ${hint}.`;
  }
  if (value.includes("\uFFFD")) return "The line is not UTF-8: save the file as UTF-8.";
  if (isComment) return "The line begins with #: skip comments, or remove the line.";
  if (value.trim() !== value) return "The value begins or ends with a blank: remove it.";
  return null;
}

/** Divides values into requests that the server accepts: the index after the last value of each. */
export function batches(values: string[]): number[] {
  const ends: number[] = [];
  let start = 0;
  let bytes = 0;
  values.forEach((value, index) => {
    const size = encoder.encode(JSON.stringify(value)).length + 1;
    if (index > start && (index - start >= BATCH_VALUES_MAX || bytes + size > BATCH_BYTES_MAX)) {
      ends.push(index);
      start = index;
      bytes = 0;
    }
    bytes += size;
  });
  if (values.length > start) ends.push(values.length);
  return ends;
}
