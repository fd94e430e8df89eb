//! What each operation takes, gives and refuses, beyond what all of them do.
//!
//! Only what is an operation's own stands here; statuses and titles are the table of codes', and
//! what every route refuses is told by the document's assembly.

use super::examples;
use super::parameters::{api_key, idempotency_key, last_event_id, listing, prefer};
use crate::Code;
use serde_json::{Value, json};

/// One operation's own part of the document.
pub(super) struct Call {
    /// What there is to know beyond the summary.
    pub(super) about: &'static str,
    /// The body it reads.
    pub(super) takes: Takes,
    /// Parameters that are not in its path.
    pub(super) parameters: Vec<Value>,
    /// Its answers when it succeeds, and those in its own words when it does not.
    pub(super) gives: Vec<Gives>,
    /// Its problems.
    pub(super) refuses: &'static [Code],
}

/// A body that is read.
pub(super) enum Takes {
    /// None: what is sent is not looked at.
    Nothing,
    /// An object that may be left out.
    Maybe(&'static str, Vec<(&'static str, Value)>),
    /// An object.
    Object(&'static str, Vec<(&'static str, Value)>),
}

/// One answer.
pub(super) struct Gives {
    pub(super) status: u16,
    pub(super) says: &'static str,
    /// Content type, schema and example.
    pub(super) content: Option<(&'static str, Value, Value)>,
}

impl Call {
    fn new(about: &'static str, gives: Vec<Gives>, refuses: &'static [Code]) -> Self {
        Self { about, takes: Takes::Nothing, parameters: Vec::new(), gives, refuses }
    }

    fn maybe(mut self, schema: &'static str, examples: Vec<(&'static str, Value)>) -> Self {
        self.takes = Takes::Maybe(schema, examples);
        self
    }

    fn with(mut self, parameters: Vec<Value>) -> Self {
        self.parameters = parameters;
        self
    }
}

fn named(status: u16, says: &'static str, schema: &str, example: Value) -> Gives {
    let schema = json!({ "$ref": format!("#/components/schemas/{schema}") });
    Gives { status, says, content: Some(("application/json", schema, example)) }
}

/// An answer whose shape is nobody else's; it has all members of its example's `schema`.
fn own(status: u16, says: &'static str, members: &Value, example: Value) -> Gives {
    let names: Vec<_> = example.as_object().into_iter().flat_map(|o| o.keys().cloned()).collect();
    let schema = json!({ "type": "object", "properties": members, "required": names });
    Gives { status, says, content: Some(("application/json", schema, example)) }
}

fn text(content_type: &'static str, says: &'static str, example: &str) -> Gives {
    let content = (content_type, json!({ "type": "string" }), example.into());
    Gives { status: 200, says, content: Some(content) }
}

fn done(says: &'static str) -> Gives {
    Gives { status: 204, says, content: None }
}

/// An operation's own part; every operation of the table has one.
pub(super) fn call(operation: &str) -> Call {
    pools(operation)
        .or_else(|| keys(operation))
        .or_else(|| leases(operation))
        .or_else(|| seed(operation))
        .or_else(|| plain(operation))
        .or_else(|| server(operation))
        .unwrap_or_else(|| panic!("invariant: {operation} is described"))
}

fn pools(operation: &str) -> Option<Call> {
    Some(match operation {
        "listPools" => Call::new(
            "All of them, by name.",
            vec![named(200, "The pools.", "Pools", examples::pools())],
            &[],
        ),
        "showPool" => Call::new(
            "The counts are counters: asking costs the same whatever the pool's size.",
            vec![named(200, "The pool.", "Pool", examples::pool())],
            &[],
        ),
        "putPool" => Call::new(
            "A new pool takes the default for what is left out, an old one keeps it. A change touches \
             grants and keep-alives to come, not those that run.",
            vec![
                named(200, "Its policy is changed.", "Pool", examples::pool()),
                named(201, "It is made.", "Pool", examples::pool()),
            ],
            &[Code::TooManyPools, Code::StorageFull],
        )
        .maybe("PolicyRequest", examples::policies()),
        "followEvents" => Call::new(
            "Server-sent events, each once it is durable, ends by time included. A stream begins with one \
             `resync`, which tells the counts, unless `Last-Event-ID` names an event after which all is \
             still there. Events are `resync`, `generated`, `imported`, `granted`, `renewed`, `released`, \
             `expired`, `quarantined`, `restored`, `deleted`, `purged`, `policy` and `dropped`, which ends \
             the stream; pass over those you do not know. No event has a key's value or a lease's id. \
             Silence is never longer than 15 s: then a comment comes.",
            vec![text("text/event-stream", "The stream, without end.", examples::EVENT)],
            &[],
        )
        .with(vec![last_event_id()]),
        "deletePool" => Call::new(
            "Its keys are purged behind the scenes, and its memory of retired values goes with it.",
            vec![done("It is removed.")],
            &[Code::DefaultPool, Code::StorageFull],
        ),
        _ => return None,
    })
}

fn keys(operation: &str) -> Option<Call> {
    Some(match operation {
        "listKeys" => Call::new(
            "A page looks at a bounded number of keys: it may hold fewer than `limit`, even none, while \
             `next_cursor` is set; at the end that is null. A key that is there during the whole listing \
             is on exactly one page.",
            vec![named(200, "A page.", "KeyPage", examples::page())],
            &[Code::BadCursor, Code::Invalid],
        )
        .with(listing()),
        "addKeys" => Call::new(
            "All or nothing. Without `values` the server makes `count` keys, one when left out, from the \
             operating system's chance. With them it takes those values in, in their order; one that was \
             brought in and then deleted or purged is not used again as long as the pool lives.",
            vec![named(201, "The keys, with their values.", "NewKeys", examples::new_keys())],
            &[
                Code::KeyExists,
                Code::KeysGone,
                Code::IdempotencyMismatch,
                Code::PoolFull,
                Code::StorageFull,
                Code::Settling,
            ],
        )
        .maybe("GenerateRequest", examples::generates())
        .with(vec![idempotency_key()]),
        "showKey" => Call::new(
            "",
            vec![named(200, "The key.", "Key", examples::key())],
            &[Code::UnknownKey],
        ),
        "deleteKey" => Call::new(
            "A lease on it ends.",
            vec![done("It is deleted.")],
            &[Code::UnknownKey, Code::StorageFull],
        ),
        "releaseKey" => Call::new(
            "Ends a rest or a quarantine too. A lease that is ended so is followed by the policy's rest, as \
             any other.",
            vec![named(200, "It is back.", "Freed", examples::freed())],
            &[Code::UnknownKey, Code::StorageFull],
        )
        .maybe("Empty", Vec::new()),
        "revealKey" => Call::new(
            "In any state, and no lease is touched. Told in the audit log.",
            vec![named(200, "The key's value.", "Revealed", examples::revealed())],
            &[Code::UnknownKey],
        )
        .maybe("Empty", Vec::new()),
        "keepKeyAlive" => Call::new(
            "Gives it its full keep-alive time again. One that is due is gone, and is not raised.",
            vec![named(200, "It is kept.", "Kept", examples::kept())],
            &[Code::UnknownKey],
        )
        .maybe("Empty", Vec::new()),
        "keepAlive" => {
            let mut call = Call::new(
                "Either `ids` or `all`. `all` is one step whatever the pool's size, and raises no key that \
                 is due.",
                vec![named(200, "Those that are there are kept.", "KeptMany", examples::kept_many())],
                &[Code::Settling],
            );
            call.takes = Takes::Object("KeepAliveRequest", examples::keep_alives());
            call
        }
        _ => return None,
    })
}

fn leases(operation: &str) -> Option<Call> {
    Some(match operation {
        "acquire" => Call::new(
            "Each free key is equally likely. Where none is free it waits in line, first come, first served, \
             if it was told to; a caller that hangs up leaves the line, and no key is lost with it.",
            vec![named(201, "A key is lent.", "Grant", examples::grant())],
            &[
                Code::NoKeyAvailable,
                Code::LeaseEnded,
                Code::TakenOver,
                Code::IdempotencyMismatch,
                Code::StorageFull,
                Code::Settling,
            ],
        )
        .maybe("AcquireRequest", examples::acquires())
        .with(vec![prefer(), idempotency_key()]),
        "release" => Call::new(
            "An old lease never touches the key's present holder.",
            vec![done("The key is back.")],
            &[Code::LeaseEnded, Code::StorageFull],
        )
        .maybe("ReleaseRequest", examples::releases()),
        "renew" => Call::new(
            "Its new end is this call plus `ttl_seconds`, at most its grant plus the pool's longest hold.",
            vec![named(200, "It lasts longer.", "Lease", examples::lease())],
            &[Code::LeaseEnded, Code::MaxHoldReached, Code::StorageFull],
        )
        .maybe("RenewRequest", examples::renews()),
        _ => return None,
    })
}

fn seed(operation: &str) -> Option<Call> {
    let key = json!({ "api_key": { "type": "string" } });
    let with_end = json!({
        "api_key": { "type": "string" },
        "expires_at": { "type": ["string", "null"], "format": "date-time" },
    });
    let message = json!({ "message": { "type": "string" } });
    let unknown = || {
        own(
            400,
            "No such key, or none was named.",
            &message,
            json!({ "message": "Kindly send key to be updated, given key does not exist" }),
        )
    };
    let named = vec![api_key()];
    Some(match operation {
        "seedAcquire" => Call::new(
            "As the Django version has it: for the pool's length, without waiting.",
            vec![
                own(200, "A key is lent.", &key, json!({ "api_key": examples::VALUE })),
                own(404, "None is free.", &message, json!({ "message": "No available key found" })),
            ],
            &[Code::StorageFull, Code::Settling],
        ),
        "seedAdd" => {
            let refused = json!({ "api_key": { "type": "array", "items": { "type": "string" } } });
            let why = json!({ "api_key": ["key with this api key already exists"] });
            let mut members = with_end;
            members["created_at"] = json!({ "type": "string", "format": "date-time" });
            let made = json!({
                "api_key": examples::VALUE, "created_at": examples::AT, "expires_at": examples::LATER,
            });
            Call::new(
                "Without `api_key` the server makes one. Other fields are ignored.",
                vec![
                    own(201, "The key is there.", &members, made),
                    own(400, "That value cannot be added.", &refused, why),
                ],
                &[Code::PoolFull, Code::StorageFull, Code::Settling],
            )
            .maybe("SeedAdd", examples::seed_adds())
        }
        "seedRelease" => Call::new(
            "The value is in the query, as it always was: keep it out of proxies' logs.",
            vec![own(200, "It is free.", &key, json!({ "api_key": examples::VALUE })), unknown()],
            &[Code::StorageFull],
        )
        .with(named),
        "seedKeepAlive" => {
            let kept = json!({ "api_key": examples::VALUE, "expires_at": examples::LATER });
            Call::new(
                "What the Django version lacks: gives the key its full keep-alive time again.",
                vec![own(200, "It is kept.", &with_end, kept), unknown()],
                &[],
            )
            .with(named)
        }
        "seedDelete" => Call::new(
            "In any state, for ever.",
            vec![
                own(
                    200,
                    "It is deleted.",
                    &message,
                    json!({ "message": "Given key has been deleted" }),
                ),
                unknown(),
            ],
            &[Code::StorageFull],
        )
        .with(named),
        "seedStartScheduler" => Call::new(
            "Any number of calls is harmless.",
            vec![own(
                200,
                "It runs.",
                &message,
                json!({ "message": "Scheduler has been started to unblock keys at given condition, Kindly do not hit again " }),
            )],
            &[],
        ),
        _ => return None,
    })
}

fn plain(operation: &str) -> Option<Call> {
    let key = json!({ "keyId": { "type": "string" }, "key": { "type": "string" } });
    let a_key = json!({ "keyId": examples::KEY_ID, "key": examples::VALUE });
    let empty = |says| own(200, says, &json!({}), json!({}));
    let gone = |says| own(404, says, &json!({}), json!({}));
    let no_such = || gone("There is no such key.");
    Some(match operation {
        "plainAcquire" => Call::new(
            "For the pool's length, without waiting.",
            vec![own(200, "A key is lent.", &key, a_key), gone("None is free.")],
            &[Code::StorageFull, Code::Settling],
        ),
        "plainGenerate" => Call::new(
            "One key, in the default pool.",
            vec![own(201, "The key is there.", &key, a_key)],
            &[Code::PoolFull, Code::StorageFull, Code::Settling],
        )
        .maybe("Empty", Vec::new()),
        "plainShow" => {
            let members = json!({
                "isBlocked": { "type": "boolean" },
                "blockedAt": { "type": ["string", "null"], "format": "date-time" },
                "createdAt": { "type": "string", "format": "date-time" },
            });
            let shown =
                json!({ "isBlocked": true, "blockedAt": examples::AT, "createdAt": examples::AT });
            Call::new("", vec![own(200, "The key.", &members, shown), no_such()], &[])
        }
        "plainRelease" => Call::new(
            "A free key is free: that is no error.",
            vec![empty("It is free."), no_such()],
            &[Code::StorageFull],
        ),
        "plainDelete" => Call::new(
            "In any state, for ever.",
            vec![empty("It is deleted."), no_such()],
            &[Code::StorageFull],
        ),
        "plainKeepAlive" => Call::new(
            "Gives it its full keep-alive time again.",
            vec![empty("It is kept."), no_such()],
            &[],
        ),
        _ => return None,
    })
}

fn server(operation: &str) -> Option<Call> {
    let status = json!({ "status": { "type": "string" } });
    Some(match operation {
        "live" => {
            Call::new("", vec![own(200, "It runs.", &status, json!({ "status": "live" }))], &[])
        }
        "ready" => Call::new(
            "",
            vec![own(200, "It takes requests.", &status, json!({ "status": "ready" }))],
            &[Code::ShuttingDown],
        ),
        "version" => {
            let members = json!({ "name": { "type": "string" }, "version": { "type": "string" } });
            let which = json!({ "name": "keypeg", "version": env!("CARGO_PKG_VERSION") });
            Call::new("", vec![own(200, "This one.", &members, which)], &[])
        }
        "metrics" => Call::new(
            "OpenMetrics text. No label is made from anything a client said.",
            vec![text("application/openmetrics-text", "The counters.", "# EOF\n")],
            &[],
        ),
        "openapi" => {
            let schema = json!({ "type": "object", "required": ["openapi", "info", "paths"] });
            let content = Some(("application/json", schema, Value::Null));
            let gives = Gives { status: 200, says: "The document.", content };
            Call::new("", vec![gives], &[])
        }
        "docs" => Call::new(
            "",
            vec![text(
                "text/html",
                "The page: no script, nothing from elsewhere.",
                "<!doctype html>",
            )],
            &[],
        ),
        "docsStyle" => Call::new("", vec![text("text/css", "The style sheet.", "")], &[]),
        _ => return None,
    })
}

/// What an answer's ids are good for: name, operation, its parameters.
pub(super) fn links(operation: &str) -> Value {
    const POOL: &str = "$request.path.pool";
    let key = |operation, id| json!({ "operationId": operation, "parameters": { "pool": POOL, "id": id } });
    let lease = |operation| {
        let parameters = json!({ "pool": POOL, "lease": "$response.body#/id" });
        json!({ "operationId": operation, "parameters": parameters })
    };
    let plain = |operation| json!({ "operationId": operation, "parameters": { "id": "$response.body#/keyId" } });
    match operation {
        "addKeys" => json!({
            "show": key("showKey", "$response.body#/keys/0/id"),
            "delete": key("deleteKey", "$response.body#/keys/0/id"),
            "keepAlive": key("keepKeyAlive", "$response.body#/keys/0/id"),
            "reveal": key("revealKey", "$response.body#/keys/0/id"),
        }),
        "acquire" => json!({
            "release": lease("release"),
            "renew": lease("renew"),
            "releaseKey": key("releaseKey", "$response.body#/key_id"),
        }),
        "plainGenerate" => json!({
            "show": plain("plainShow"),
            "delete": plain("plainDelete"),
            "keepAlive": plain("plainKeepAlive"),
        }),
        "plainAcquire" => json!({ "release": plain("plainRelease") }),
        _ => Value::Null,
    }
}
