//! The page of each error code: what it means, what to do, what the problem carries.
//!
//! The server's `/problems/<code>` pages and `docs/problems/*.md` are both rendered from this
//! table, so they cannot differ. The table knows neither HTML nor Markdown: text between backticks
//! is code, and nothing else is markup. A code without a page does not compile.

use super::ProblemPage;
use super::backup_texts::{BACKUP_RUNNING, BACKUP_UNSUPPORTED};
use super::server_texts::{INTERNAL, OVERLOADED, SETTLING, SHUTTING_DOWN};
use super::shard_texts::{NO_CLUSTER, NO_OWNER, NOT_MOVED, NOT_OWNER, OWNER_LOST};
use keypeg_client::Code;

/// The answer for a code that is only returned before anything is changed.
const NOT_APPLIED: &str = "No. The server changed nothing.";
/// The answer for a code whose cause passes, so that the same request can succeed later.
const NOT_APPLIED_RETRY: &str =
    "No. The server changed nothing, so it is safe to send the same request again.";

const RETRY_AFTER: (&str, &str) =
    ("Retry-After", "Seconds after which the same request can succeed.");
const MAX: (&str, &str) = ("max", "The limit that is reached.");

/// Returns the page that explains a code.
pub(super) fn page(code: Code) -> ProblemPage {
    match code {
        Code::Malformed => MALFORMED,
        Code::BadCursor => BAD_CURSOR,
        Code::Unauthorized => UNAUTHORIZED,
        Code::Forbidden => FORBIDDEN,
        Code::KeyRequired => KEY_REQUIRED,
        Code::KeyNotActive => KEY_NOT_ACTIVE,
        Code::NotFound => NOT_FOUND,
        Code::MethodNotAllowed => METHOD_NOT_ALLOWED,
        Code::Timeout => TIMEOUT,
        Code::TooLarge => TOO_LARGE,
        Code::UnsupportedMediaType => UNSUPPORTED_MEDIA_TYPE,
        Code::Misdirected => MISDIRECTED,
        Code::Invalid => INVALID,
        Code::RateLimited => RATE_LIMITED,
        Code::UnknownPool => UNKNOWN_POOL,
        Code::UnknownKey => UNKNOWN_KEY,
        Code::NoKeyAvailable => NO_KEY_AVAILABLE,
        Code::LeaseEnded => LEASE_ENDED,
        Code::MaxHoldReached => MAX_HOLD_REACHED,
        Code::IdempotencyMismatch => IDEMPOTENCY_MISMATCH,
        Code::KeysGone => KEYS_GONE,
        Code::TakenOver => TAKEN_OVER,
        Code::PreconditionFailed => PRECONDITION_FAILED,
        Code::DefaultPool => DEFAULT_POOL,
        Code::KeyExists => KEY_EXISTS,
        Code::TooManyPools => TOO_MANY_POOLS,
        Code::PoolFull => POOL_FULL,
        Code::StorageFull => STORAGE_FULL,
        Code::Overloaded => OVERLOADED,
        Code::ShuttingDown => SHUTTING_DOWN,
        Code::NotOwner => NOT_OWNER,
        Code::NoOwner => NO_OWNER,
        Code::OwnerLost => OWNER_LOST,
        Code::NoCluster => NO_CLUSTER,
        Code::NotMoved => NOT_MOVED,
        Code::Settling => SETTLING,
        Code::BackupRunning => BACKUP_RUNNING,
        Code::BackupUnsupported => BACKUP_UNSUPPORTED,
        Code::Internal => INTERNAL,
    }
}

const MALFORMED: ProblemPage = ProblemPage::new(
    "The server cannot read the request. Either the head or the framing is not valid HTTP/1.1, or \
     the body is not one valid JSON object. A name that occurs twice in a JSON object is rejected \
     too, and so is a path with an encoded slash or an invalid `%`. A client that speaks HTTP/2 \
     gets the status 505.",
    &[
        "Read `detail`: it names the position in the JSON, or the header at fault.",
        "Send exactly one `Host` header, and either `Content-Length` or `Transfer-Encoding: \
         chunked`.",
        "Correct the request before you send it again: the same bytes are rejected again.",
    ],
    NOT_APPLIED,
);

const BAD_CURSOR: ProblemPage = ProblemPage::new(
    "The server did not issue this cursor, or no longer accepts it. A cursor of a list of \
     keys is valid for one pool, and only until the server restarts. If several servers share the \
     pools, it is valid until another server takes the pool over, such as after a move of its shard.",
    &[
        "Restart the listing: send the request without `cursor`.",
        "Use each `next_cursor` unchanged, and only with the list that it came from.",
    ],
    NOT_APPLIED,
);

const UNAUTHORIZED: ProblemPage = ProblemPage::new(
    "This server requires an access token. The request carries none, or its token is unknown, \
     expired or revoked. The server reads a token only from the header `Authorization: Bearer \
     TOKEN`.",
    &[
        "Send the token as `Authorization: Bearer TOKEN`.",
        "Ask an operator for a new token if yours has expired or was revoked.",
        "An operator creates a token with `keypeg token new --tokens FILE`, which adds it to the \
         token file.",
    ],
    NOT_APPLIED,
)
.headers(&[(
    "WWW-Authenticate",
    "`Bearer`; with `error=\"invalid_token\"` if the request carried a token (RFC 6750).",
)]);

const FORBIDDEN: ProblemPage = ProblemPage::new(
    "The server knows the caller, but does not allow the request. Either the access token lacks \
     the scope that the route requires, or the token is for other pools, or a browser reports that \
     a page of another site sent the request. The answer is the same whether or not the pool \
     exists.",
    &[
        "If the problem has `scope`, use a token with that scope.",
        "If it does not, use a token for this pool.",
        "Send changes from your own program or page: a page of another site cannot acquire or \
         change a key.",
    ],
    NOT_APPLIED,
)
.members(&[("scope", "The scope that the access token lacks.")])
.headers(&[(
    "WWW-Authenticate",
    "`Bearer error=\"insufficient_scope\"`; absent for a page of another site.",
)]);

const KEY_REQUIRED: ProblemPage = ProblemPage::new(
    "A gateway asked whether the key of a request is active, and the header `X-Api-Key` is \
     missing.",
    &[
        "Send the key of your lease to the service in `X-Api-Key`.",
        "If your clients send the key in another header, configure the gateway to pass it on in \
         `X-Api-Key`.",
    ],
    NOT_APPLIED,
)
.headers(&[("WWW-Authenticate", "`ApiKey header=\"X-Api-Key\"`.")]);

const KEY_NOT_ACTIVE: ProblemPage = ProblemPage::new(
    "A gateway asked whether the key of a request is active, and it is not: no key of the pool has \
     this value, the key was deleted or purged, or it has no running lease. The answer is the same \
     in all these cases. With the parameter `states`, keys in other states are active too.",
    &[
        "Acquire a new lease, and use its key.",
        "Renew a lease before it ends, if the work takes longer.",
    ],
    NOT_APPLIED,
);

const NOT_FOUND: ProblemPage = ProblemPage::new(
    "The server has no route at this path. The path may be misspelt, or may have an additional \
     slash.",
    &[
        "Compare the path with the list of routes at `/docs` or `/openapi.json`.",
        "Check that a proxy in front of the server does not change the path.",
    ],
    NOT_APPLIED,
);

const METHOD_NOT_ALLOWED: ProblemPage = ProblemPage::new(
    "The server has a route at this path, but the route does not support the method of the \
     request. The `Allow` header lists the methods that it supports.",
    &["Send one of the methods in `Allow`.", "See `/docs` for what each method does."],
    NOT_APPLIED,
)
.headers(&[("Allow", "The methods that the route supports.")]);

const TIMEOUT: ProblemPage = ProblemPage::new(
    "The body of the request did not arrive in time after its head: within 30 seconds, unless the \
     operator has set another `--body-timeout`. The server closes the connection after this \
     answer.",
    &[
        "Send the whole body without a pause, on a new connection.",
        "Check the network between the client and the server if this happens often.",
    ],
    NOT_APPLIED_RETRY,
);

const TOO_LARGE: ProblemPage = ProblemPage::new(
    "The request is larger than the server accepts. A body has at most 1 MiB, or 8 MiB for `POST \
     /v1/pools/{pool}/keys`, which imports values. A request head has at most 64 KiB; beyond that \
     the status is 431.",
    &[
        "Split the request: an import can be sent as several requests of at most 10 000 values.",
        "Remove large or needless headers, such as cookies, if the status is 431.",
    ],
    NOT_APPLIED,
);

const UNSUPPORTED_MEDIA_TYPE: ProblemPage = ProblemPage::new(
    "The server reads only uncompressed JSON. The request has a body with another `Content-Type`, \
     or with a `Content-Encoding`.",
    &[
        "Send `Content-Type: application/json`.",
        "Send the body without compression and without a `Content-Encoding` header.",
    ],
    NOT_APPLIED,
);

const MISDIRECTED: ProblemPage = ProblemPage::new(
    "The `Host` header does not name this server. The server accepts `localhost` and names below \
     it, IP addresses, and the names given with `--allow-host`. A server with access tokens accepts \
     any name unless `--allow-host` is given. This check keeps web pages from reaching the server \
     through a DNS name that the owner of the page controls (DNS rebinding).",
    &[
        "Send the request to `localhost`, to the address of the server, or to an allowed name.",
        "To allow another name, an operator starts the server with `--allow-host NAME`.",
    ],
    NOT_APPLIED,
);

const INVALID: ProblemPage = ProblemPage::new(
    "A field of the body, a query parameter or a header is unknown, has the wrong type or is out \
     of its range. `field` names it, and `allowed` gives the allowed values. The server rejects \
     unknown fields, so that it does not ignore a misspelt name.",
    &[
        "Correct the field that `field` names: `allowed` gives the allowed values.",
        "Compare the request with the schema at `/docs`.",
        "If the field is `ttl_seconds`, read the policy with `GET /v1/pools/{pool}`: \
         `lease_ttl_seconds` is its maximum.",
    ],
    NOT_APPLIED,
)
.members(&[
    ("field", "The name of the rejected field."),
    ("allowed", "The allowed values of that field."),
    ("index", "The index of the rejected item, from 0, if the field is an array."),
]);

const RATE_LIMITED: ProblemPage = ProblemPage::new(
    "A limit for the caller is reached, and `detail` names it. The access token has used up its \
     `requests_per_second`, or it holds its maximum of leases, or too many wrong tokens came from \
     this address. Requests that wait for a key count as leases. For requests in progress, event \
     streams and the memory of unread responses, the limit is the share of the caller. A caller is \
     an access token, or a client address if the server has no tokens.",
    &[
        "Wait for the seconds in `Retry-After`, then send the request again.",
        "If the problem has `max`, release a lease, or wait until one expires.",
        "If the token is wrong, correct it before you send more requests.",
        "If the detail names responses, read the ones that you have requested, and request smaller \
         pages (`limit`). If it names event streams, close one.",
        "If the limit is too low, ask an operator to raise it in the token file.",
    ],
    NOT_APPLIED_RETRY,
)
.members(&[("max", "`max_leases` of the token, if that limit is reached.")])
.headers(&[RETRY_AFTER]);

const UNKNOWN_POOL: ProblemPage = ProblemPage::new(
    "There is no pool of this name. It was never created, or it was deleted. A request that waits \
     for a key gets this answer when its pool is deleted.",
    &[
        "Check the name: `GET /v1/pools` lists the pools.",
        "Create the pool with `PUT /v1/pools/{pool}`.",
    ],
    NOT_APPLIED,
);

const UNKNOWN_KEY: ProblemPage = ProblemPage::new(
    "The pool has no key with this id. The key was never created, was deleted, or was purged \
     because its keep-alive deadline passed. A deleted or purged key never returns.",
    &[
        "Check the id: `GET /v1/pools/{pool}/keys` lists the keys.",
        "If the key was purged, keep keys alive more often: every `keepalive_every_seconds` of the \
         pool.",
        "Add keys with `POST /v1/pools/{pool}/keys`.",
    ],
    NOT_APPLIED,
);

const NO_KEY_AVAILABLE: ProblemPage = ProblemPage::new(
    "The pool has no key that it can grant. `cause` gives the reason, and the counts give the number of \
     keys in each state. A request that waits gets this answer when its wait time ends.",
    &[
        "Wait for a key: send `wait_seconds` (at most 300) or `Prefer: wait=N`.",
        "Or send the request again after `Retry-After`, if the answer has it.",
        "If `cause` is `pool_empty`, add keys with `POST /v1/pools/{pool}/keys`.",
        "If `cause` is `all_quarantined`, put a key back with `DELETE \
         /v1/pools/{pool}/keys/{id}/quarantine`.",
        "If `cause` is `draining`, the pool grants no key, and refuses a request that waits, until \
         `PUT /v1/pools/{pool}` sets `draining` to false.",
    ],
    NOT_APPLIED_RETRY,
)
.members(&[
    (
        "cause",
        "`pool_empty`, `all_leased`, `all_resting`, `all_quarantined`, `none_free` for a mixture, \
         or `draining` if the pool is draining, whatever the states of its keys are.",
    ),
    ("available", "Available keys."),
    ("leased", "Leased keys."),
    ("resting", "Resting keys: released, and not granted before their rest ends."),
    ("quarantined", "Quarantined keys: not granted until they are put back."),
    ("total", "All keys of the pool."),
])
.headers(&[(
    "Retry-After",
    "Seconds until the first key becomes available by time; absent if none does.",
)]);

const LEASE_ENDED: ProblemPage = ProblemPage::new(
    "The lease has ended, or never existed. The caller does not hold the key any more, and must \
     not use it. A request with an ended lease never affects the present holder of the key.",
    &[
        "Stop using the key.",
        "Acquire a new lease with `POST /v1/pools/{pool}/leases`.",
        "If `cause` is `expired`, renew leases earlier, or acquire keys with a longer \
         `ttl_seconds`.",
        "If you sent an Idempotency-Key, send a new one with the next acquire.",
    ],
    "No. The server changed nothing; a lease that was released before stays released.",
)
.members(&[(
    "cause",
    "How the lease ended: `released`, `expired`, `superseded` (another holder has the key now) or \
     `key_gone` (the key was deleted or purged). Absent if the server no longer knows.",
)]);

const MAX_HOLD_REACHED: ProblemPage = ProblemPage::new(
    "The renewal cannot extend the lease: it already ends at its maximum hold, which is \
     `max_hold_seconds` of the pool after its grant, or `lease_ttl_seconds` if that is null.",
    &[
        "Finish the work before `expires_at`, then release the lease.",
        "If you need a key for longer, acquire a new lease.",
        "An operator can raise `max_hold_seconds` with `PUT /v1/pools/{pool}`; that applies to new \
         leases only.",
    ],
    "No. The lease still ends at `expires_at`.",
)
.members(&[("expires_at", "When the lease ends.")]);

const IDEMPOTENCY_MISMATCH: ProblemPage = ProblemPage::new(
    "This Idempotency-Key was used before with another body. The server compares the fields of the \
     body. Their order and the spacing have no effect.",
    &[
        "Use a new Idempotency-Key for each new operation.",
        "Send exactly the same body when you repeat a request.",
    ],
    "No. The server changed nothing because of this request. The earlier request with this key was \
     applied, or still waits for a key.",
);

const KEYS_GONE: ProblemPage = ProblemPage::new(
    "The request is a repeat: an earlier request with the same Idempotency-Key created keys. At \
     least one of those keys was deleted or purged later. So the stored answer is no longer \
     correct, and the server does not return it.",
    &[
        "List the keys that are left with `GET /v1/pools/{pool}/keys`.",
        "To create new keys, send the request with a new Idempotency-Key.",
    ],
    "The earlier request was applied. This one changed nothing.",
);

const TAKEN_OVER: ProblemPage = ProblemPage::new(
    "The request waited for a key, and a second request with the same Idempotency-Key arrived. The \
     second request continues to wait at the same place in the wait queue. The first request ends \
     with this answer.",
    &[
        "Use the answer of the second request.",
        "If the two requests are different operations, use a different Idempotency-Key for each of \
         them.",
    ],
    "No. The second request can still acquire a key.",
);

const PRECONDITION_FAILED: ProblemPage = ProblemPage::new(
    "The request has a precondition that is false, or that the server cannot check. `PUT` of a pool \
     supports `If-None-Match: *` (create only) and `If-Match: *` (change only), and `DELETE` of a \
     pool supports `If-Match: *`. The server gives no entity tags and no modification dates, so no \
     other condition is true. Other changes support no precondition.",
    &[
        "Read `detail`: it names the condition.",
        "If the pool exists and you meant to change it, send the request without `If-None-Match`.",
        "If the pool does not exist and you meant to create it, send the request without \
         `If-Match`.",
    ],
    NOT_APPLIED,
);

const DEFAULT_POOL: ProblemPage = ProblemPage::new(
    "The pool `default` always exists, because the compatibility APIs (the Django API and the \
     simple API) use it. It cannot be deleted.",
    &[
        "To change its policy, use `PUT /v1/pools/default`.",
        "To empty it, delete its keys with `DELETE /v1/pools/default/keys/{id}`.",
    ],
    NOT_APPLIED,
);

const KEY_EXISTS: ProblemPage = ProblemPage::new(
    "An imported value cannot be added. It is already in the pool, or it occurs twice in the \
     request, or it was in the pool before, generated or imported, and was deleted or purged. The \
     server recognises such a value while the pool exists, because a client that does not know of \
     the deletion may still use it. The server adds all values of a request or none, so it added \
     none of them.",
    &[
        "Remove the values at `indices` from `values`, and send the request again.",
        "If `more` is true, the server has not examined the values after the last of `indices`, so \
         the next request may report further ones.",
        "`keypeg import` imports a file and reports the line of such a value; with \
         `--skip-existing` it imports the others.",
        "To bring the value of a deleted or purged key back on purpose, send `\"allow_retired\": \
         true`, or use `keypeg import --allow-retired`. This needs the scope `admin` on a server \
         with access tokens. Make sure first that no earlier holder still uses the value.",
    ],
    "No. The server added none of the values.",
)
.members(&[
    (
        "index",
        "The index of the first such value in `values`, from 0. The value itself is a secret and is \
         not repeated.",
    ),
    ("indices", "The indices of such values, as far as the server examined them, in their order; at most 1 000."),
    ("more", "Whether the server has not examined the values after the last of `indices`."),
]);

const TOO_MANY_POOLS: ProblemPage = ProblemPage::new(
    "The server has reached its maximum number of pools, which `max` gives. Existing pools are not \
     affected, and their policies can still be changed.",
    &[
        "Delete pools that are not needed with `DELETE /v1/pools/{pool}`.",
        "Run a second server if you need more pools.",
    ],
    NOT_APPLIED,
)
.members(&[MAX]);

const POOL_FULL: ProblemPage = ProblemPage::new(
    "Adding these keys would exceed `max_keys` of the pool, which `max` gives, or the memory that the \
     server may take for keys. `detail` names the limit. The server adds all keys of a request or \
     none.",
    &[
        "Delete keys that are not needed, or stop keeping them alive, so that they are purged.",
        "If the limit is the pool's, raise `max_keys` with `PUT /v1/pools/{pool}`.",
        "If the limit is the server's, delete keys with long values, or start the server with a larger `--memory`.",
    ],
    "No. The server added none of the keys.",
)
.members(&[MAX]);

const STORAGE_FULL: ProblemPage = ProblemPage::new(
    "The disk of the server is almost full, so the server rejects new work: new keys and pools \
     first, then grants and renewals. The server rejects releases and deletions last. Keep-alives \
     and reads work, except for keys whose keep-alive deadline has passed: until the server can \
     record that they are purged, it neither shows them nor says that they do not exist. The status is 503 when a key is acquired, and 507 for everything else.",
    &[
        "An operator frees disk space, or enlarges the volume of the data directory.",
        "The server accepts requests again when there is space, without a restart.",
        "Wait for `Retry-After`, if the answer has it, then send the request again.",
    ],
    NOT_APPLIED_RETRY,
)
.headers(&[("Retry-After", "Seconds to wait; only with status 503.")]);
