//! The part of the document that is specific to each operation: description, body, parameters,
//! answers and problem codes.
//!
//! Statuses and titles of problems come from the table of codes. The problems that all routes share
//! are added when the document is built.

use super::call::{Answer, Call, inline, no_content, plain_text, referenced};
use super::cluster_calls::{cluster, ready};
use super::examples;
use super::parameters::{
    api_key, forwarded_key, idempotency_key, listing, metrics_pools, prefer, states,
};
use super::pool_calls::pools;
use keypeg_client::Code;
use serde_json::{Value, json};

/// Returns the specific part of an operation; every operation of the table has one.
pub(super) fn call(operation: &str) -> Call {
    pools(operation)
        .or_else(|| keys(operation))
        .or_else(|| leases(operation))
        .or_else(|| django(operation))
        .or_else(|| simple(operation))
        .or_else(|| server(operation))
        .or_else(|| cluster(operation))
        .unwrap_or_else(|| panic!("invariant: {operation} has a description"))
}

fn keys(operation: &str) -> Option<Call> {
    Some(match operation {
        "listKeys" => Call::new(
            "One request scans at most 4096 keys, whatever the filters are, so a page can have fewer than `limit` keys, even none, although \
             `next_cursor` is set. On the last page `next_cursor` is null. A key that exists during the whole listing is on exactly one page.",
            vec![referenced(200, "A page of keys.", "KeyPage", examples::page())],
            &[Code::BadCursor, Code::Invalid, Code::StorageFull],
        )
        .with_parameters(listing()),
        "addKeys" => Call::new(
            "All or nothing. Without `values` the server generates `count` keys, one by default, \
             from random bytes of the operating system. With `values` it imports them in their \
             order. A value that was in the pool before, generated or imported, and was deleted or \
             purged, is refused while the pool exists, unless `allow_retired` is true. \
             `allow_retired` needs the scope `admin` on a server with access tokens. `label` gives \
             all new keys one label; `labels` gives each its own.",
            vec![referenced(
                201,
                "The new keys, with their values.",
                "AddedKeys",
                examples::new_keys(),
            )],
            &[
                Code::KeyExists,
                Code::KeysGone,
                Code::IdempotencyMismatch,
                Code::PoolFull,
                Code::StorageFull,
                Code::Settling,
            ],
        )
        .with_optional_body("GenerateRequest", examples::generates())
        .with_parameters(vec![idempotency_key()]),
        "showKey" => Call::new(
            "",
            vec![referenced(200, "The key.", "Key", examples::key())],
            &[Code::UnknownKey, Code::StorageFull],
        ),
        "changeKey" => Call::new(
            "A label changes nothing about how the key is lent. Several keys can have the same label.",
            vec![referenced(200, "The key, with its new label.", "Key", examples::key())],
            &[Code::UnknownKey, Code::PoolFull, Code::StorageFull],
        )
        .with_required_body("KeyRequest", examples::key_changes()),
        "deleteKey" => Call::new(
            "A running lease of the key ends.",
            vec![no_content("The key is deleted.")],
            &[Code::UnknownKey, Code::StorageFull],
        ),
        "releaseKey" => Call::new(
            "Ends the lease, the rest or the quarantine of the key, even if another client holds it. After a \
             lease that is ended this way the key rests as the policy says, as after any lease.",
            vec![referenced(200, "The key is released.", "Freed", examples::freed())],
            &[Code::UnknownKey, Code::StorageFull],
        )
        .with_optional_body("Empty", Vec::new()),
        "quarantineKey" => Call::new(
            "The server does not lend a quarantined key. A leased key with `when` `free` is draining: its lease continues, renewals too, and when it ends \
             in any way the key is quarantined. A key that is quarantined or draining already gets the new reason, if the request has one.",
            vec![referenced(200, "The key.", "Key", examples::quarantined_key())],
            &[Code::UnknownKey, Code::PoolFull, Code::StorageFull],
        )
        .with_optional_body("QuarantineRequest", examples::quarantines()),
        "endQuarantine" => Call::new(
            "A quarantined key becomes available. A draining key keeps its lease, and is not quarantined after it. Any other key stays as it is.",
            vec![referenced(200, "The key.", "Key", examples::key())],
            &[Code::UnknownKey, Code::StorageFull],
        ),
        "revealKey" => Call::new(
            "Works in any state and does not affect a lease. The audit log records it.",
            vec![referenced(200, "The key's value.", "Revealed", examples::revealed())],
            &[Code::UnknownKey, Code::StorageFull],
        )
        .with_optional_body("Empty", Vec::new()),
        "keepKeyAlive" => Call::new(
            "Resets the keep-alive deadline to its full length. A key whose deadline has passed is purged; a keep-alive does not bring it back.",
            vec![referenced(200, "The key is kept alive.", "Kept", examples::kept())],
            &[Code::UnknownKey, Code::StorageFull],
        )
        .with_optional_body("Empty", Vec::new()),
        "keepAlive" => {
            let call = Call::new(
                "Either `ids` or `all`. The cost of `all` does not depend on the size of the pool. Keys \
                 whose deadline has passed are purged; a keep-alive does not bring them back.",
                vec![referenced(
                    200,
                    "The keys that exist are kept alive.",
                    "KeptMany",
                    examples::kept_many(),
                )],
                &[Code::Settling, Code::StorageFull],
            );
            call.with_required_body("KeepAliveRequest", examples::keep_alives())
        }
        "verify" => {
            let call = Call::new(
                "For the service that accepts the keys of a pool: is this value an active key, and \
                 who holds it? A value that is unknown, deleted, purged or in another state gets \
                 `{\"active\": false}`. Changes nothing and is not in the audit log. An address that \
                 sends too many unknown values gets 429.",
                vec![referenced(
                    200,
                    "Whether the key is active.",
                    "Verification",
                    examples::verification(),
                )],
                &[],
            )
            .with_parameters(vec![states()]);
            call.with_required_body("VerifyRequest", examples::verifies())
        }
        "authorize" => Call::new(
            "For gateways that ask about each request, such as `auth_request` of nginx, \
             `forward_auth` of Caddy, `forwardAuth` of Traefik or `ext_authz` of Envoy. The gateway \
             passes the key of its client on in `X-Api-Key`. The headers of the answer say who holds \
             the key; the gateway can pass them on to the service. In `Keypeg-Holder` all but \
             visible ASCII characters, and `%`, are percent-encoded.",
            vec![no_content("The key is active.")],
            &[Code::KeyRequired, Code::KeyNotActive],
        )
        .with_parameters(vec![states(), forwarded_key()]),
        _ => return None,
    })
}

fn leases(operation: &str) -> Option<Call> {
    Some(match operation {
        "acquire" => Call::new(
            "Each available key is equally likely. If no key is available and the request asks to \
             wait, it waits in the wait queue of the pool: first come, first served. A client that \
             disconnects leaves the wait queue, and no key is lost.",
            vec![referenced(201, "A key is lent.", "Grant", examples::grant())],
            &[
                Code::NoKeyAvailable,
                Code::LeaseEnded,
                Code::TakenOver,
                Code::IdempotencyMismatch,
                Code::StorageFull,
                Code::Settling,
            ],
        )
        .with_optional_body("AcquireRequest", examples::acquires())
        .with_parameters(vec![prefer(), idempotency_key()]),
        "release" => Call::new(
            "An ended lease never affects the present holder of the key.",
            vec![no_content("The lease is released.")],
            &[Code::LeaseEnded, Code::StorageFull],
        )
        .with_optional_body("ReleaseRequest", examples::releases()),
        "renew" => Call::new(
            "The lease ends `ttl_seconds` after this request, but at most `max_hold_seconds` of \
             the pool after its grant. A lease that lasts longer already stays as it is.",
            vec![referenced(
                200,
                "The lease lasts at least `ttl_seconds`, or ends at its maximum hold.",
                "Lease",
                examples::lease(),
            )],
            &[Code::LeaseEnded, Code::MaxHoldReached, Code::StorageFull],
        )
        .with_optional_body("RenewRequest", examples::renews()),
        _ => return None,
    })
}

fn django(operation: &str) -> Option<Call> {
    let key = json!({ "api_key": { "type": "string" } });
    let with_end = json!({
        "api_key": { "type": "string" },
        "expires_at": { "type": ["string", "null"], "format": "date-time" },
    });
    let message = json!({ "message": { "type": "string" } });
    let unknown = || {
        inline(
            400,
            "There is no such key, or `api_key` is missing.",
            &message,
            json!({ "message": "Kindly send key to be updated, given key does not exist" }),
        )
    };
    let by_value = vec![api_key()];
    Some(match operation {
        "seedAcquire" => Call::new(
            "Lends the key for `lease_ttl_seconds` of the pool. The request does not wait.",
            vec![
                inline(200, "A key is lent.", &key, json!({ "api_key": examples::VALUE })),
                inline(
                    404,
                    "No key is available.",
                    &message,
                    json!({ "message": "No available key found" }),
                ),
            ],
            &[Code::StorageFull, Code::Settling],
        ),
        "seedAdd" => {
            let refused = json!({ "api_key": { "type": "array", "items": { "type": "string" } } });
            let why = json!({ "api_key": ["key with this api key already exists"] });
            let mut members = with_end;
            members["created_at"] = json!({ "type": "string", "format": "date-time" });
            let added = json!({
                "api_key": examples::VALUE,
                "created_at": examples::AT,
                "expires_at": examples::LATER,
            });
            Call::new(
                "Without `api_key` the server generates a value. Other fields are ignored.",
                vec![
                    inline(201, "The key is added.", &members, added),
                    inline(400, "The value cannot be added.", &refused, why),
                ],
                &[Code::PoolFull, Code::StorageFull, Code::Settling],
            )
            .with_optional_body("SeedAdd", examples::django_adds())
        }
        "seedRelease" => Call::new(
            "The value is in the query, as in the Django version: configure proxies not to log it.",
            vec![
                inline(
                    200,
                    "The key is released, or was available.",
                    &key,
                    json!({ "api_key": examples::VALUE }),
                ),
                unknown(),
            ],
            &[Code::StorageFull],
        )
        .with_parameters(by_value),
        "seedKeepAlive" => {
            let kept_alive = json!({ "api_key": examples::VALUE, "expires_at": examples::LATER });
            Call::new(
                "An addition to the Django version: resets the keep-alive deadline to its full \
                 length.",
                vec![inline(200, "The key is kept alive.", &with_end, kept_alive), unknown()],
                &[Code::StorageFull],
            )
            .with_parameters(by_value)
        }
        "seedDelete" => Call::new(
            "Deletes the key in any state, permanently.",
            vec![
                inline(
                    200,
                    "The key is deleted.",
                    &message,
                    json!({ "message": "Given key has been deleted" }),
                ),
                unknown(),
            ],
            &[Code::StorageFull],
        )
        .with_parameters(by_value),
        "seedStartScheduler" => Call::new(
            "Repeated calls have no effect.",
            vec![inline(
                200,
                "Expiry runs.",
                &message,
                json!({
                    "message": "Scheduler has been started to unblock keys at given condition, \
                                Kindly do not hit again ",
                }),
            )],
            &[],
        ),
        _ => return None,
    })
}

fn simple(operation: &str) -> Option<Call> {
    let key = json!({ "keyId": { "type": "string" }, "key": { "type": "string" } });
    let a_key = json!({ "keyId": examples::KEY_ID, "key": examples::VALUE });
    let empty = |text| inline(200, text, &json!({}), json!({}));
    let not_found = |text| inline(404, text, &json!({}), json!({}));
    let no_such = || not_found("There is no such key.");
    Some(match operation {
        "plainAcquire" => Call::new(
            "Lends the key for `lease_ttl_seconds` of the pool. The request does not wait.",
            vec![inline(200, "A key is lent.", &key, a_key), not_found("No key is available.")],
            &[Code::StorageFull, Code::Settling],
        ),
        "plainGenerate" => Call::new(
            "Generates one key in the default pool.",
            vec![inline(201, "The key is generated.", &key, a_key)],
            &[Code::PoolFull, Code::StorageFull, Code::Settling],
        )
        .with_optional_body("Empty", Vec::new()),
        "plainShow" => {
            let members = json!({
                "isBlocked": { "type": "boolean" },
                "blockedAt": { "type": ["string", "null"], "format": "date-time" },
                "createdAt": { "type": "string", "format": "date-time" },
            });
            let shown =
                json!({ "isBlocked": true, "blockedAt": examples::AT, "createdAt": examples::AT });
            Call::new(
                "",
                vec![inline(200, "The key.", &members, shown), no_such()],
                &[Code::StorageFull],
            )
        }
        "plainRelease" => Call::new(
            "It is not an error if the key is already available.",
            vec![empty("The key is released, or was available."), no_such()],
            &[Code::StorageFull],
        ),
        "plainDelete" => Call::new(
            "Deletes the key in any state, permanently.",
            vec![empty("The key is deleted."), no_such()],
            &[Code::StorageFull],
        ),
        "plainKeepAlive" => Call::new(
            "Resets the keep-alive deadline to its full length.",
            vec![empty("The key is kept alive."), no_such()],
            &[Code::StorageFull],
        ),
        _ => return None,
    })
}

fn server(operation: &str) -> Option<Call> {
    let status = json!({ "status": { "type": "string" } });
    Some(match operation {
        "backup" => Call::new(
            "A consistent copy of all pools and keys, with the values of all keys, while everything \
             goes on. The bytes are for `keypeg restore` and `keypeg check`. A backup is complete if \
             the response is: a failure ends the connection before its end. The server runs one \
             backup at a time. HEAD begins none.",
            vec![plain_text("application/octet-stream", "The backup.", "KEYPEGBK…")],
            &[Code::StorageFull, Code::BackupRunning, Code::BackupUnsupported],
        ),
        "index" => {
            let names = ["name", "docs", "openapi", "pools", "ready", "version"];
            let members = names.map(|name| (name.to_owned(), json!({ "type": "string" })));
            let links = json!({
                "name": "keypeg", "docs": "/docs", "openapi": "/openapi.json",
                "pools": "/v1/pools", "ready": "/readyz", "version": "/version",
            });
            let members = Value::from(serde_json::Map::from_iter(members));
            Call::new(
                "A client that accepts `text/html` and does not name `application/json` before it \
                 gets the dashboard, a page.",
                vec![inline(200, "The links.", &members, links)],
                &[],
            )
        }
        "live" => Call::new(
            "",
            vec![inline(200, "The process runs.", &status, json!({ "status": "live" }))],
            &[],
        ),
        "ready" => ready(&status),
        "showAccess" => Call::new(
            "A server without access tokens allows everything.",
            vec![referenced(200, "What the token allows.", "Access", examples::access())],
            &[],
        ),
        "version" => {
            let members = json!({
                "name": { "type": "string" },
                "version": { "type": "string" },
                "commit": { "type": ["string", "null"] },
                "built_at": { "type": ["string", "null"], "format": "date-time" },
                "target": { "type": "string" },
            });
            let which = json!({
                "name": "keypeg",
                "version": env!("CARGO_PKG_VERSION"),
                "commit": "0123456789abcdef0123456789abcdef01234567",
                "built_at": "2026-11-26T00:00:00Z",
                "target": "x86_64-unknown-linux-gnu",
            });
            let text = "`commit` and `built_at` are null if the build does not know them. \
                        `built_at` is the date of the source.";
            Call::new(text, vec![inline(200, "The version.", &members, which)], &[])
        }
        "metrics" => Call::new(
            "The text format of Prometheus, or OpenMetrics if `Accept` prefers it. The values of \
             the label `pool` are the pools that the token may use; no other label contains text \
             from clients.",
            vec![plain_text("text/plain", "The metrics.", "# TYPE keypeg_pools gauge\n")],
            &[Code::Invalid],
        )
        .with_parameters(vec![metrics_pools()]),
        "openapi" => {
            let schema = json!({ "type": "object", "required": ["openapi", "info", "paths"] });
            let content = Some(("application/json", schema, Value::Null));
            let answer = Answer { status: 200, text: "The document.", content };
            Call::new("", vec![answer], &[])
        }
        "docs" => Call::new(
            "",
            vec![plain_text(
                "text/html",
                "The page. It has no script and loads nothing from other hosts.",
                "<!doctype html>",
            )],
            &[],
        ),
        "docsStyle" => Call::new("", vec![plain_text("text/css", "The style sheet.", "")], &[]),
        _ => return None,
    })
}
