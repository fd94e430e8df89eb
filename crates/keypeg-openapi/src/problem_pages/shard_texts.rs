//! The pages of the error codes of several servers that share their pools.

use super::ProblemPage;

const RETRY_AFTER: (&str, &str) =
    ("Retry-After", "Seconds after which the same request can succeed.");
const NOT_APPLIED: &str =
    "No. No server changed anything, so it is safe to send the same request again.";

pub(super) const NOT_OWNER: ProblemPage = ProblemPage::new(
    "Several servers share the pools, and the server that got a forwarded request does not serve \
     its pool any more. The servers use this code among themselves: the server that received the \
     request of a client looks for the other one, so a client does not see it.",
    &["Send the request again, to any server of the installation."],
    NOT_APPLIED,
)
.headers(&[RETRY_AFTER]);

pub(super) const NO_OWNER: ProblemPage = ProblemPage::new(
    "Several servers share the pools, and for some seconds this server has found none that serves \
     the pool: the server of the pool has stopped and another one takes over, or the servers do not \
     reach each other. A request with a large body is refused at once when its pool moves.",
    &[
        "Send the request again after a second, to this or another server of the installation.",
        "If it does not end, look at `keypeg cluster status` of a server that runs, or at `GET \
         /v1/cluster`: they show which shards have no owner, which servers are live, why a server \
         cannot follow a shard or take it over, and which servers it cannot reach, with the reason.",
        "If one server cannot reach another one, both stay ready and serve their own pools. Correct the \
         address or the certificate that `unreachable` names, or send requests to a server that \
         reaches the other one.",
    ],
    NOT_APPLIED,
)
.headers(&[RETRY_AFTER]);

pub(super) const OWNER_LOST: ProblemPage = ProblemPage::new(
    "Several servers share the pools. This server forwarded the request to the server of its pool, \
     and the connection broke before the answer, or the other server lost the pool while it made \
     the change durable. Or the request waited for a key at the other server, and this server stops.",
    &[
        "Send the same request again with the same `Idempotency-Key`, if it had one: the answer is \
         that of the first request if that was applied.",
        "Send a release, a renewal or a keep-alive again: a repeat does no harm.",
        "Otherwise look at the pool first. An acquired key whose answer was lost is available again \
         when its lease ends.",
    ],
    "It is unknown: the change was applied completely or not at all.",
)
.headers(&[RETRY_AFTER]);

pub(super) const NO_CLUSTER: ProblemPage = ProblemPage::new(
    "The server was started without `--store`: it has all pools alone, and there are no other \
     servers and no shards that a request could show or move.",
    &[
        "Use `GET /metrics` and `GET /readyz` to watch a single server.",
        "If the server should share its pools, check that it was started with `--store`.",
    ],
    "No.",
);

pub(super) const NOT_MOVED: ProblemPage = ProblemPage::new(
    "The shard did not move: the other server has not read its log to the end, this server moves \
     another shard, or the other server did not take the shard over in time. `detail` says which.",
    &[
        "Look at `keypeg cluster status` or `GET /v1/cluster`: the other server should follow the \
         shard, without an error.",
        "Send the request again. A move that is in progress already is not begun twice.",
    ],
    "`outcome` says it: `not_applied` if the move did not begin. With `unknown` the other server may \
     still take the shard over. No lease and no key is lost in either case.",
);
