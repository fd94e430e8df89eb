// What is wrong, or will be soon, from the pools, the readiness and the metrics. Each finding says
// what to do. Reads no time and draws nothing.
import type { Pool } from "./api";
import { count, counted, leasesRunOn, length } from "./format";

export interface Finding {
  level: "error" | "warning";
  text: string;
  pool?: string;
}

export type Metrics = Map<string, number>;

/** Parses the text format of Prometheus: the name with its labels, and the value. */
export function parseMetrics(text: string): Metrics {
  const metrics: Metrics = new Map();
  for (const line of text.split("\n")) {
    const space = line.lastIndexOf(" ");
    if (!line.startsWith("#") && space > 0) metrics.set(line.slice(0, space), Number(line.slice(space + 1)));
  }
  return metrics;
}

const DAY_S = 86_400;
const CERTIFICATE_WARNING_S = 14 * DAY_S;

/** Findings of the server. `before` are the metrics of the previous reading. */
export function serverFindings(metrics: Metrics, before: Metrics | null, nowMs: number): Finding[] {
  const found: Finding[] = [];
  const is = (name: string) => (metrics.get(`keypeg_${name}`) ?? 0) > 0;
  const grew = (name: string) => before !== null && (metrics.get(name) ?? 0) > (before.get(name) ?? 0);
  if (grew('keypeg_refusals_total{code="storage_full"}')) {
    found.push({ level: "error", text: "The disk of the server is full: changes are refused. Free space on the volume of the data directory." });
  }
  if (is("audit_failing")) {
    found.push({ level: "error", text: "The audit log cannot be written, so changes are refused. Check its directory and its volume." });
  }
  if (is("tls_certificate_broken")) {
    found.push({ level: "error", text: "The certificate on the disk is unusable; the last good one applies. Correct the file, then send SIGHUP." });
  }
  if (is("tokens_broken")) {
    found.push({ level: "error", text: "The token file is unusable; the last good one applies. Correct the file, then send SIGHUP." });
  }
  const notAfter = metrics.get("keypeg_tls_certificate_not_after_seconds");
  if (notAfter !== undefined && notAfter - nowMs / 1000 < CERTIFICATE_WARNING_S) {
    const left = notAfter - nowMs / 1000;
    found.push({
      level: left <= 0 ? "error" : "warning",
      text: left <= 0 ? "The certificate of the server has expired: renew it." : `The certificate of the server expires in ${length(left)}: renew it.`,
    });
  }
  const bytes = metrics.get("keypeg_pool_bytes") ?? 0;
  const most = metrics.get('keypeg_memory_bytes_max{part="keys"}') ?? Infinity;
  if (bytes > most * 0.9) {
    found.push({ level: "warning", text: `The memory for keys is ${Math.floor((bytes / most) * 100)} % full: raise --memory, or delete keys.` });
  }
  return found;
}

/** Findings of the pools, the worst first. */
export function poolFindings(pools: Iterable<Pool>): Finding[] {
  const found: (Finding & { weight: number })[] = [];
  for (const { pool, total, available, quarantined, waiting, leased, draining } of pools) {
    if (draining) {
      found.push({ level: "warning", pool, text: `The pool is draining and grants no key; ${leasesRunOn(leased)}.`, weight: 1e6 + total });
    } else if (available === 0 && waiting > 0) {
      const keys = total === 0 ? "the pool has no key" : total === 1 ? "the only key is not available" : `none of ${count(total)} keys is available`;
      const waits = `${counted(waiting, "request")} ${waiting === 1 ? "waits" : "wait"}`;
      found.push({ level: "error", pool, text: `${waits}: ${keys}.`, weight: 1e9 + waiting });
    } else if (available === 0 && leased > 0 && leased === total) {
      found.push({ level: "warning", pool, text: total === 1 ? "The only key is leased." : `All ${count(total)} keys are leased.`, weight: 1e6 + total });
    } else if (available === 0 && total > 0) {
      found.push({ level: "warning", pool, text: total === 1 ? "The only key is not available." : `None of ${count(total)} keys is available.`, weight: 1e6 + total });
    }
    if (quarantined > 0) {
      const keys = `${counted(quarantined, "key")} ${quarantined === 1 ? "is" : "are"} quarantined`;
      found.push({ level: "warning", pool, text: `${keys}: read the reason, then put back or delete.`, weight: quarantined });
    }
  }
  return found.sort((one, other) => other.weight - one.weight);
}
