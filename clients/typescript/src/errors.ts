/**
 * Errors: one class for each error code of the server, and the errors that have no answer.
 *
 * A code that this version does not know becomes a plain `Refused`, so a newer server works too. No
 * error contains the value of a key, the id of a lease or an access token.
 */

import type { components } from "./schema.js";

/** The stable word for a kind of refusal. */
export type Code = components["schemas"]["Code"];
/** The body of every refusal. */
export type Problem = components["schemas"]["Problem"];

/** Base of all errors of this package. */
export class KeypegError extends Error {
  /** What the caller can do about it, as one sentence. */
  get nextStep(): string {
    return "";
  }

  /** Whether the same call can succeed later without a change by the caller. */
  get isTemporary(): boolean {
    return false;
  }

  override get name(): string {
    return this.constructor.name;
  }
}

/** An argument or a variable is invalid, so no request was sent. */
export class InvalidInput extends KeypegError {
  override get nextStep(): string {
    return "Correct the argument or variable that the message names.";
  }
}

/** No answer arrived. */
export class Unreachable extends KeypegError {
  /** Whether the request may have reached the server: then a change may be applied. */
  readonly wasSent: boolean;

  constructor(message: string, wasSent: boolean, cause?: unknown) {
    super(message, { cause });
    this.wasSent = wasSent;
  }

  override get nextStep(): string {
    return "Check that the server runs, and that KEYPEG_SERVER is its address.";
  }

  override get isTemporary(): boolean {
    return true;
  }
}

/** The answer is not one of a Keypeg server: another server or a proxy has answered. */
export class UnexpectedAnswer extends KeypegError {
  /** The HTTP status. */
  readonly status: number;

  constructor(status: number, detail: string) {
    super(`the answer did not come from Keypeg (status ${status}): ${detail}`);
    this.status = status;
  }

  override get nextStep(): string {
    return "Check KEYPEG_SERVER, and the proxies between this program and the server.";
  }

  /** A proxy answers for a server that restarts. */
  override get isTemporary(): boolean {
    return [502, 503, 504].includes(this.status);
  }
}

/** The wait for a key has ended, and no answer gave a key. */
export class WaitEnded extends KeypegError {
  /** The whole wait, in seconds. */
  readonly waited: number;
  /** The last failure: `NoKeyAvailable`, or why there was no answer. */
  readonly last: KeypegError;

  constructor(waited: number, last: KeypegError) {
    super(`no key became available within ${waited} s; the last attempt: ${last.message}`);
    this.waited = waited;
    this.last = last;
  }

  override get nextStep(): string {
    return "Wait longer, or add keys to the pool.";
  }

  override get isTemporary(): boolean {
    return true;
  }
}

/** Why a lease ended before its holder released it. */
export type LeaseEnd =
  | "released"
  | "expired"
  | "key_deleted"
  | "key_purged"
  | "key_gone"
  | "pool_deleted"
  | "max_hold"
  | "refused"
  | "not_renewed";

const ENDS: Readonly<Record<LeaseEnd, string>> = {
  released: "another client released it, by force-release or by its id",
  expired: "it expired on the server",
  key_deleted: "its key was deleted",
  key_purged: "its key was purged: no keep-alive arrived in time",
  key_gone: "its key was deleted or purged",
  pool_deleted: "its pool was deleted",
  max_hold: "it reached the maximum hold of its pool",
  refused: "the server does not know it any more",
  not_renewed: "no renewal succeeded",
};

/** The lease ended before its holder released it: the key may belong to another holder now. */
export class LeaseLost extends KeypegError {
  /** Why the lease ended. */
  readonly end: LeaseEnd;
  /** The pool of the key. */
  readonly pool: string;
  /** The public id of the key. */
  readonly keyId: string;
  /** The fencing token of the lease that was lost. */
  readonly fencingToken: number;

  constructor(end: LeaseEnd, detail: string, of: { pool: string; keyId: string; fencingToken: number }) {
    super(`the lease of key ${of.keyId} in pool ${of.pool} was lost: ${ENDS[end]}${detail && `: ${detail}`}`);
    this.end = end;
    this.pool = of.pool;
    this.keyId = of.keyId;
    this.fencingToken = of.fencingToken;
  }

  override get nextStep(): string {
    return "Stop using the key. To continue, acquire a key again.";
  }

  /**
   * Returns the `LeaseLost` that an error is, wraps or has as its cause. A block with `await using`
   * that throws has a `SuppressedError` if the lease was lost too.
   */
  static in(error: unknown): LeaseLost | undefined {
    const open: unknown[] = [error];
    for (let count = 0; open.length > 0 && count < 32; count++) {
      const next = open.pop();
      if (next instanceof LeaseLost) return next;
      if (next instanceof Error) {
        const { cause, error: inner, suppressed } = next as Error & { error?: unknown; suppressed?: unknown };
        open.push(cause, suppressed, inner);
      }
    }
    return undefined;
  }
}

/** The server refused a request. Each code has a subclass; a code of a newer server has none. */
export class Refused extends KeypegError {
  /** The body of the refusal: `code`, `status`, `detail`, and what only some codes have. */
  readonly problem: Readonly<Problem>;
  /** Seconds after which the server advises to send the request again. */
  readonly retryAfter: number | undefined;

  constructor(problem: Problem, retryAfter?: number) {
    super(`${problem.detail} (status ${problem.status}, ${problem.code})`);
    this.problem = problem;
    this.retryAfter = retryAfter;
  }

  /** The stable word for the kind of refusal, such as `unknown_pool`. */
  get code(): Code {
    return this.problem.code;
  }

  /** The HTTP status. */
  get status(): number {
    return this.problem.status;
  }

  /** The id of the request, as in the log of the server. */
  get requestId(): string {
    return this.problem.request_id;
  }

  /** The path of the page on the server that explains the code. */
  get docs(): string {
    return `/problems/${this.code}`;
  }

  override get nextStep(): string {
    return "Read the page of the code in the documentation of the server.";
  }

  override get isTemporary(): boolean {
    return [408, 429, 500, 503].includes(this.status);
  }

  /** Returns the error for the body of a refusal, or `undefined` if it is none. */
  static of(body: unknown, retryAfter?: number): Refused | undefined {
    if (typeof body !== "object" || body === null) return undefined;
    const problem = body as Problem;
    const isProblem =
      typeof problem.code === "string" && typeof problem.status === "number" && typeof problem.detail === "string";
    if (!isProblem) return undefined;
    const known = Object.hasOwn(CLASSES, problem.code) ? CLASSES[problem.code] : Refused;
    return new known(problem, retryAfter);
  }
}

/** The request is not valid HTTP or JSON. */
export class Malformed extends Refused {
  override get nextStep(): string {
    return "Check what stands between this program and the server.";
  }
}

/** The cursor of a listing is invalid, for example after a restart of the server. */
export class BadCursor extends Refused {
  override get nextStep(): string {
    return "Start the listing again.";
  }
}

/** The server needs an access token, or the token is unknown, expired or revoked. */
export class Unauthorized extends Refused {
  override get nextStep(): string {
    return "Set KEYPEG_TOKEN or the option token to a valid access token.";
  }
}

/** The access token lacks a scope, or is for other pools. */
export class Forbidden extends Refused {
  override get nextStep(): string {
    return "Use a token with the scope and the pool that the message names.";
  }
}

/** The server has no such route. */
export class NotFound extends Refused {
  override get nextStep(): string {
    return "Check the path in KEYPEG_SERVER, and the version of the server.";
  }
}

/** The pool does not exist. */
export class UnknownPool extends Refused {
  override get nextStep(): string {
    return "Create the pool, or correct its name.";
  }
}

/** The key never existed, was deleted, or was purged. */
export class UnknownKey extends Refused {
  override get nextStep(): string {
    return "Check the id of the key; keep keys alive in a pool with a keep-alive TTL.";
  }
}

/**
 * No key can be granted now; `problem` has `cause` and the counts. If `cause` is `draining`, no wait helps: the
 * pool grants no key until `draining` is false.
 */
export class NoKeyAvailable extends Refused {
  override get nextStep(): string {
    return "Wait for a key with the option wait, or add keys to the pool.";
  }

  override get isTemporary(): boolean {
    return this.problem.cause !== "draining";
  }
}

/** A gateway asked about a request without a key. */
export class KeyRequired extends Refused {
  override get nextStep(): string {
    return "Send the key in the header X-Api-Key.";
  }
}

/** A gateway asked about a key that is unknown, deleted, purged or not leased. */
export class KeyNotActive extends Refused {
  override get nextStep(): string {
    return "Acquire a key, and use it while its lease runs.";
  }
}

/** The route does not have this method. */
export class MethodNotAllowed extends Refused {
  override get nextStep(): string {
    return "Check the path in KEYPEG_SERVER, and the version of the server.";
  }
}

/** The body of the request did not reach the server in time. */
export class RequestTimeout extends Refused {
  override get nextStep(): string {
    return "Send the request again.";
  }
}

/** Another backup of the server is running; one runs at a time. */
export class BackupRunning extends Refused {
  override get nextStep(): string {
    return "Wait until it has ended, then try again.";
  }
}

/** The server keeps its keys in memory alone, so it has no backups. */
export class BackupUnsupported extends Refused {
  override get nextStep(): string {
    return "Start the server with a data directory.";
  }
}

/** The pool `default` cannot be deleted. */
export class DefaultPool extends Refused {
  override get nextStep(): string {
    return "Delete its keys instead, or use another pool.";
  }
}

/** Values to import are or were in the pool; `problem` has their `indices`, and `more`. */
export class KeyExists extends Refused {
  override get nextStep(): string {
    return "Leave this value out, or import it with allow_retired after a deletion.";
  }
}

/** The lease cannot end later: it ends at the maximum hold of its pool. */
export class MaxHoldReached extends Refused {
  override get nextStep(): string {
    return "Raise max_hold_seconds of the pool, or release the lease in time.";
  }
}

/** A repeat with the same Idempotency-Key took this request's place in the wait queue. */
export class TakenOver extends Refused {
  override get nextStep(): string {
    return "Nothing: the repeat waits.";
  }

  override get isTemporary(): boolean {
    return true;
  }
}

/** A key of the stored answer was deleted or purged. */
export class KeysGone extends Refused {
  override get nextStep(): string {
    return "Generate or import again, with another Idempotency-Key.";
  }
}

/** The lease has ended or never existed; `problem` can have `cause`. */
export class LeaseEnded extends Refused {
  override get nextStep(): string {
    return "Stop using the key. To continue, acquire a key again.";
  }
}

/** The precondition of the request is false. */
export class PreconditionFailed extends Refused {
  override get nextStep(): string {
    return "Read the pool, and decide again.";
  }
}

/** The request is too large. */
export class TooLarge extends Refused {
  override get nextStep(): string {
    return "Send fewer or shorter values in one call.";
  }
}

/** The body is not declared as JSON. */
export class UnsupportedMediaType extends Refused {
  override get nextStep(): string {
    return "Check what stands between this program and the server.";
  }
}

/** The host in KEYPEG_SERVER is not a name of this server. */
export class Misdirected extends Refused {
  override get nextStep(): string {
    return "Use an address of the server, or start it with --allow-host.";
  }
}

/** A field is unknown, has the wrong type or is out of range; `problem` has `field`, `allowed`. */
export class Invalid extends Refused {
  override get nextStep(): string {
    return "Correct the field that the message names.";
  }
}

/** The Idempotency-Key was used with another body. */
export class IdempotencyMismatch extends Refused {
  override get nextStep(): string {
    return "Use a new Idempotency-Key for each operation.";
  }
}

/** The token or the address has reached a limit; `retryAfter` has the pause. */
export class RateLimited extends Refused {
  override get nextStep(): string {
    return "Send the request again after retryAfter seconds, or raise the limit of the token.";
  }
}

/** A defect of the server; it is unknown whether a change was applied. */
export class Internal extends Refused {
  override get nextStep(): string {
    return "Report it with the requestId.";
  }
}

/** A limit of the server is reached; nothing was applied. */
export class Overloaded extends Refused {
  override get nextStep(): string {
    return "Send the request again after retryAfter seconds.";
  }
}

/** The server is stopping; nothing was applied. */
export class ShuttingDown extends Refused {
  override get nextStep(): string {
    return "Send the request again when the server runs.";
  }
}

/** A server that does not serve the pool got a forwarded request; nothing was applied. */
export class NotOwner extends Refused {
  override get nextStep(): string {
    return "Send the request again after retryAfter seconds.";
  }
}

/** No server serves the pool at the moment; nothing was applied. */
export class NoOwner extends Refused {
  override get nextStep(): string {
    return "Send the request again after retryAfter seconds.";
  }
}

/** The server of the pool was lost meanwhile; it is unknown whether a change was applied. */
export class OwnerLost extends Refused {
  override get nextStep(): string {
    return "Send the request again with the same idempotency key, or look at the pool first.";
  }
}

/** The server has all pools alone: it has no other servers and no shards. */
export class NoCluster extends Refused {
  override get nextStep(): string {
    return "Ask a server that was started with --store.";
  }
}

/** The shard was not moved to the other server; the outcome says whether the move began. */
export class NotMoved extends Refused {
  override get nextStep(): string {
    return "Look at the servers and shards, then send the request again.";
  }
}

/** The server has many deadlines to process; nothing was applied. */
export class Settling extends Refused {
  override get nextStep(): string {
    return "Send the request again after retryAfter seconds.";
  }
}

/** The server has reached its number of pools; `problem` has `max`. */
export class TooManyPools extends Refused {
  override get nextStep(): string {
    return "Delete pools, or raise the limit of the server.";
  }
}

/** The pool or the server has reached its number of keys. */
export class PoolFull extends Refused {
  override get nextStep(): string {
    return "Delete keys, or raise max_keys of the pool or the memory of the server.";
  }
}

/** The disk of the server is full. */
export class StorageFull extends Refused {
  override get nextStep(): string {
    return "Free space on the disk of the server.";
  }
}

/** Each code has a class: a code that is missing here does not compile. */
const CLASSES: Readonly<Record<Code, typeof Refused>> = {
  malformed: Malformed,
  bad_cursor: BadCursor,
  unauthorized: Unauthorized,
  forbidden: Forbidden,
  not_found: NotFound,
  unknown_pool: UnknownPool,
  unknown_key: UnknownKey,
  no_key_available: NoKeyAvailable,
  key_required: KeyRequired,
  key_not_active: KeyNotActive,
  method_not_allowed: MethodNotAllowed,
  timeout: RequestTimeout,
  backup_running: BackupRunning,
  backup_unsupported: BackupUnsupported,
  default_pool: DefaultPool,
  key_exists: KeyExists,
  max_hold_reached: MaxHoldReached,
  taken_over: TakenOver,
  keys_gone: KeysGone,
  lease_ended: LeaseEnded,
  precondition_failed: PreconditionFailed,
  too_large: TooLarge,
  unsupported_media_type: UnsupportedMediaType,
  misdirected: Misdirected,
  invalid: Invalid,
  idempotency_mismatch: IdempotencyMismatch,
  rate_limited: RateLimited,
  internal: Internal,
  overloaded: Overloaded,
  shutting_down: ShuttingDown,
  not_owner: NotOwner,
  no_owner: NoOwner,
  owner_lost: OwnerLost,
  no_cluster: NoCluster,
  not_moved: NotMoved,
  settling: Settling,
  too_many_pools: TooManyPools,
  pool_full: PoolFull,
  storage_full: StorageFull,
};
