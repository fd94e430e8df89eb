//! The pages of the error codes about the state of the server: its load, its end, its defects.

use super::ProblemPage;

const NOT_APPLIED_RETRY: &str =
    "No. The server changed nothing, so it is safe to send the same request again.";
const RETRY_AFTER: (&str, &str) =
    ("Retry-After", "Seconds after which the same request can succeed.");

pub(super) const OVERLOADED: ProblemPage = ProblemPage::new(
    "A limit of the server is reached, and `detail` names it. It is the request queue, the wait \
     queue, the event streams, the audit log, the backlog of new keys to store, the stored answers \
     of Idempotency-Keys, or a part of the memory: that of pools, leases and waiting requests, of \
     request heads, of request bodies or of large responses. For stored answers and for the queue \
     of long calls, the share of the caller is a limit too. The server rejects requests early, so \
     that accepted requests stay fast.",
    &[
        "Wait for the seconds in `Retry-After`, then send the request again.",
        "Make the pause longer after each such answer, and add a random time to the pause.",
        "If the request queue is full often, send fewer requests at the same time, or ask an \
         operator to raise `--max-queued`.",
        "If the audit log cannot be written, an operator checks its disk and its permissions.",
    ],
    NOT_APPLIED_RETRY,
)
.headers(&[RETRY_AFTER]);

pub(super) const SHUTTING_DOWN: ProblemPage = ProblemPage::new(
    "The server is stopping and accepts no new requests. Requests that wait for a key get this \
     answer too. Keys and leases are durable: they still exist after a restart, unless the server \
     runs with `--ephemeral`.",
    &[
        "Wait for the seconds in `Retry-After`, then send the request again.",
        "Stop sending requests until `GET /readyz` returns 200.",
    ],
    NOT_APPLIED_RETRY,
)
.headers(&[RETRY_AFTER]);

pub(super) const SETTLING: ProblemPage = ProblemPage::new(
    "The deadlines of many keys and leases of the pool have passed, and the server cannot expire \
     all of them within one request. The work per request is bounded, so that no request becomes \
     slow. The answer to this request needs all expiries. The server continues to expire keys and \
     leases in the background.",
    &[
        "Wait for the seconds in `Retry-After`, then send the request again.",
        "If this happens often, spread the deadlines: do not create or keep alive all keys at the \
         same instant.",
    ],
    NOT_APPLIED_RETRY,
)
.headers(&[RETRY_AFTER]);

pub(super) const INTERNAL: ProblemPage = ProblemPage::new(
    "The server failed while it handled this request. This is a defect of Keypeg. The other \
     requests are not affected.",
    &[
        "Check whether the change was applied before you repeat the request, or repeat it with the \
         same Idempotency-Key.",
        "Search the log of the server for entries at the time of the request.",
        "Report the defect, with the log.",
    ],
    "Unknown. `outcome` is `unknown`: read the pool or the key to find out.",
);
