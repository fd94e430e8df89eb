"""Errors: one class for each error code of the server, and the errors that have no answer.

A code that this version does not know becomes a plain `Refused`, so a newer server works too. No
error contains the value of a key, the id of a lease or an access token.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, ClassVar


class KeypegError(Exception):
    """Base of all errors of this package."""

    next_step: ClassVar[str] = ""
    """What the caller can do about it, as one sentence."""

    @property
    def is_temporary(self) -> bool:
        """Whether the same call can succeed later without a change by the caller."""
        return False


class InvalidInput(KeypegError, ValueError):
    """An argument, a variable or a file is invalid, so no request was sent."""

    next_step = "Correct the argument, variable or file that the message names."


class Unreachable(KeypegError, ConnectionError):
    """No answer arrived."""

    next_step = "Check that the server runs, and that KEYPEG_SERVER is its address."

    def __init__(self, message: str, *, was_sent: bool) -> None:
        super().__init__(message)
        self.was_sent = was_sent
        """Whether the request may have reached the server: then a change may be applied."""

    @property
    def is_temporary(self) -> bool:
        return True


class UnexpectedAnswer(KeypegError):
    """The answer is not one of a Keypeg server: another server or a proxy has answered."""

    next_step = "Check KEYPEG_SERVER, and the proxies that the environment names."

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"the answer did not come from Keypeg (status {status}): {detail}")
        self.status = status
        """The HTTP status."""

    @property
    def is_temporary(self) -> bool:
        # A proxy answers for a server that restarts.
        return self.status in (502, 503, 504)


class WaitEnded(KeypegError, TimeoutError):
    """The wait for a key has ended, and no answer gave a key."""

    next_step = "Wait longer, or add keys to the pool."

    def __init__(self, waited: float, last: KeypegError | None) -> None:
        reason = "" if last is None else f"; the last attempt: {last}"
        super().__init__(f"no key became available within {waited:g} s{reason}")
        self.waited = waited
        """The whole wait, in seconds."""
        self.last = last
        """The last failure: `NoKeyAvailable`, or why there was no answer; `None` without one."""

    @property
    def is_temporary(self) -> bool:
        return True


class LeaseEnd(enum.Enum):
    """Why a lease ended before its holder released it."""

    RELEASED = "another client released it, by force-release or by its id"
    EXPIRED = "it expired on the server"
    KEY_DELETED = "its key was deleted"
    KEY_PURGED = "its key was purged: no keep-alive arrived in time"
    KEY_GONE = "its key was deleted or purged"
    POOL_DELETED = "its pool was deleted"
    MAX_HOLD = "it reached the maximum hold of its pool"
    REFUSED = "the server does not know it any more"
    NOT_RENEWED = "no renewal succeeded"


class LeaseLost(KeypegError):
    """The lease ended before its holder released it: the key may belong to another holder now."""

    next_step = "Stop using the key. To continue, acquire a key again."

    def __init__(self, cause: LeaseEnd, detail: str, *, pool: str, key_id: str, fencing_token: int) -> None:
        more = f": {detail}" if detail else ""
        super().__init__(f"the lease of key {key_id} in pool {pool} was lost: {cause.value}{more}")
        self.cause = cause
        """Why the lease ended."""
        self.pool = pool
        """The pool of the key."""
        self.key_id = key_id
        """The public id of the key."""
        self.fencing_token = fencing_token
        """The fencing token of the lease that was lost."""


class Refused(KeypegError):
    """The server refused a request. Each code has a subclass; a code of a newer server has none."""

    _classes: ClassVar[dict[str, type[Refused]]] = {}
    next_step = "Read the page of the code in the documentation of the server."

    def __init_subclass__(cls, code: str, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        Refused._classes[code] = cls

    def __init__(
        self,
        code: str,
        status: int,
        detail: str,
        *,
        title: str = "",
        request_id: str = "",
        outcome: str | None = None,
        members: Mapping[str, Any] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(f"{detail} (status {status}, {code})")
        self.code = code
        """The stable word for the kind of error, such as `unknown_pool`."""
        self.status = status
        """The HTTP status."""
        self.detail = detail
        """What went wrong with this request, in English for people."""
        self.title = title
        """The title of the code."""
        self.request_id = request_id
        """The id of the request, as in the log of the server."""
        self.outcome = outcome
        """Of a failed change: `not_applied` or `unknown`; else `None`."""
        self.members = dict(members or {})
        """The members that only some codes have, such as `field`, `allowed`, `cause`, `leased`."""
        self.retry_after = retry_after
        """Seconds after which the server advises to send the request again; `None` without advice."""

    @property
    def docs(self) -> str:
        """The path of the page on the server that explains the code."""
        return f"/problems/{self.code}"

    @property
    def is_temporary(self) -> bool:
        return self.status in (408, 429, 500, 503)

    @staticmethod
    def of(problem: Mapping[str, Any], retry_after: float | None) -> Refused:
        """Returns the error for the body of a refusal. Raises `TypeError` or `KeyError` if it is none."""
        code, status, detail = problem["code"], problem["status"], problem["detail"]
        is_problem = isinstance(code, str) and isinstance(status, int) and isinstance(detail, str)
        if not is_problem:
            raise TypeError("not a problem")
        usual = {"type", "code", "status", "detail", "title", "request_id", "outcome"}
        outcome = problem.get("outcome")
        return Refused._classes.get(code, Refused)(
            code,
            status,
            detail,
            title=str(problem.get("title", "")),
            request_id=str(problem.get("request_id", "")),
            outcome=None if outcome is None else str(outcome),
            members={name: value for name, value in problem.items() if name not in usual},
            retry_after=retry_after,
        )


class Malformed(Refused, code="malformed"):
    """The request is not valid HTTP or JSON."""

    next_step = "Check what stands between this program and the server."


class BadCursor(Refused, code="bad_cursor"):
    """The cursor of a listing is invalid, for example after a restart of the server."""

    next_step = "Start the listing again."


class Unauthorized(Refused, code="unauthorized"):
    """The server needs an access token, or the token is unknown, expired or revoked."""

    next_step = "Set KEYPEG_TOKEN_FILE or KEYPEG_TOKEN to a valid access token."


class Forbidden(Refused, code="forbidden"):
    """The access token lacks a scope, or is for other pools."""

    next_step = "Use a token with the scope and the pool that the message names."


class NotFound(Refused, code="not_found"):
    """The server has no such route."""

    next_step = "Check the path in KEYPEG_SERVER, and the version of the server."


class UnknownPool(Refused, code="unknown_pool"):
    """The pool does not exist."""

    next_step = "Create the pool, or correct its name."


class UnknownKey(Refused, code="unknown_key"):
    """The key never existed, was deleted, or was purged."""

    next_step = "Check the id of the key; keep keys alive in a pool with a keep-alive TTL."


class NoKeyAvailable(Refused, code="no_key_available"):
    """No key can be granted now; `members` has `cause` and the counts.

    If `cause` is `draining`, no wait helps: the pool grants no key until `draining` is false.
    """

    next_step = "Wait for a key with wait=SECONDS, or add keys to the pool."

    @property
    def is_temporary(self) -> bool:
        return self.members.get("cause") != "draining"


class KeyRequired(Refused, code="key_required"):
    """A gateway asked about a request without a key."""

    next_step = "Send the key in the header X-Api-Key."


class KeyNotActive(Refused, code="key_not_active"):
    """A gateway asked about a key that is unknown, deleted, purged or not leased."""

    next_step = "Acquire a key, and use it while its lease runs."


class MethodNotAllowed(Refused, code="method_not_allowed"):
    """The route does not have this method."""

    next_step = "Check the path in KEYPEG_SERVER, and the version of the server."


class RequestTimeout(Refused, code="timeout"):
    """The body of the request did not reach the server in time."""

    next_step = "Send the request again."


class BackupRunning(Refused, code="backup_running"):
    """Another backup of the server is running; one runs at a time."""

    next_step = "Wait until it has ended, then try again."


class BackupUnsupported(Refused, code="backup_unsupported"):
    """The server keeps its keys in memory alone, so it has no backups."""

    next_step = "Start the server with a data directory."


class DefaultPool(Refused, code="default_pool"):
    """The pool `default` cannot be deleted."""

    next_step = "Delete its keys instead, or use another pool."


class KeyExists(Refused, code="key_exists"):
    """Values to import are or were in the pool; `members` has their `indices`, and `more`."""

    next_step = "Leave this value out, or import it with allow_retired=True after a deletion."


class MaxHoldReached(Refused, code="max_hold_reached"):
    """The lease cannot end later: it ends at the maximum hold of its pool."""

    next_step = "Raise max_hold_seconds of the pool, or release the lease in time."


class TakenOver(Refused, code="taken_over"):
    """A repeat with the same Idempotency-Key took this request's place in the wait queue."""

    next_step = "Nothing: the repeat waits."

    @property
    def is_temporary(self) -> bool:
        return True


class KeysGone(Refused, code="keys_gone"):
    """A key of the stored answer was deleted or purged."""

    next_step = "Generate or import again, with another Idempotency-Key."


class LeaseEnded(Refused, code="lease_ended"):
    """The lease has ended or never existed; `members` can have `cause`."""

    next_step = "Stop using the key. To continue, acquire a key again."


class PreconditionFailed(Refused, code="precondition_failed"):
    """The precondition of the request is false."""

    next_step = "Read the pool, and decide again."


class TooLarge(Refused, code="too_large"):
    """The request is too large."""

    next_step = "Send fewer or shorter values in one call."


class UnsupportedMediaType(Refused, code="unsupported_media_type"):
    """The body is not declared as JSON."""

    next_step = "Check what stands between this program and the server."


class Misdirected(Refused, code="misdirected"):
    """The host in KEYPEG_SERVER is not a name of this server."""

    next_step = "Use an address of the server, or start it with --allow-host."


class Invalid(Refused, code="invalid"):
    """A field is unknown, has the wrong type or is out of range; `members` has `field`, `allowed`."""

    next_step = "Correct the field that the message names."


class IdempotencyMismatch(Refused, code="idempotency_mismatch"):
    """The Idempotency-Key was used with another body."""

    next_step = "Use a new Idempotency-Key for each operation."


class RateLimited(Refused, code="rate_limited"):
    """The token or the address has reached a limit; `retry_after` has the pause."""

    next_step = "Send the request again after retry_after seconds, or raise the limit of the token."


class Internal(Refused, code="internal"):
    """A defect of the server; it is unknown whether a change was applied."""

    next_step = "Report it with the request_id."


class Overloaded(Refused, code="overloaded"):
    """A limit of the server is reached; nothing was applied."""

    next_step = "Send the request again after retry_after seconds."


class ShuttingDown(Refused, code="shutting_down"):
    """The server is stopping; nothing was applied."""

    next_step = "Send the request again when the server runs."


class NotOwner(Refused, code="not_owner"):
    """A server that does not serve the pool got a forwarded request; nothing was applied."""

    next_step = "Send the request again after retry_after seconds."


class NoOwner(Refused, code="no_owner"):
    """No server serves the pool at the moment; nothing was applied."""

    next_step = "Send the request again after retry_after seconds."


class OwnerLost(Refused, code="owner_lost"):
    """The server of the pool was lost meanwhile; it is unknown whether a change was applied."""

    next_step = "Send the request again with the same idempotency key, or look at the pool first."


class NoCluster(Refused, code="no_cluster"):
    """The server has all pools alone: it has no other servers and no shards."""

    next_step = "Ask a server that was started with --store."


class NotMoved(Refused, code="not_moved"):
    """The shard was not moved to the other server; the outcome says whether the move began."""

    next_step = "Look at the servers and shards, then send the request again."


class Settling(Refused, code="settling"):
    """The server has many deadlines to process; nothing was applied."""

    next_step = "Send the request again after retry_after seconds."


class TooManyPools(Refused, code="too_many_pools"):
    """The server has reached its number of pools; `members` has `max`."""

    next_step = "Delete pools, or raise the limit of the server."


class PoolFull(Refused, code="pool_full"):
    """The pool or the server has reached its number of keys."""

    next_step = "Delete keys, or raise max_keys of the pool or the memory of the server."


class StorageFull(Refused, code="storage_full"):
    """The disk of the server is full."""

    next_step = "Free space on the disk of the server."
