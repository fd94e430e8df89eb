//! The parameters in queries and headers that operations have.

use keypeg_client::KeyState;
use keypeg_fields::{IDEMPOTENCY_KEY_MAX, LABEL, LIMIT, POOLS, SECONDS};
use serde_json::{Value, json};

pub(super) fn listing() -> Vec<Value> {
    let state = query(
        "state",
        &json!({ "$ref": "#/components/schemas/KeyState" }),
        "Only keys in this state. Default: all keys.",
    );
    let label = query(
        LABEL.name,
        &json!({ "type": "string", "maxLength": LABEL.most }),
        "Only keys with exactly this label. Default, and empty: all keys.",
    );
    [vec![state, label], pages("keys", 100)].concat()
}

/// Returns the parameters of a listing of these items, with its page size if a request gives none.
pub(super) fn pages(items: &str, default: usize) -> Vec<Value> {
    vec![
        query(
            "limit",
            &json!({
                "type": "integer", "minimum": LIMIT.least, "maximum": LIMIT.most,
                "default": default,
            }),
            &format!("The maximum number of {items} on a page."),
        ),
        query(
            "cursor",
            &json!({ "type": "string" }),
            "`next_cursor` of the previous page. Default: the first page.",
        ),
    ]
}

/// Returns the parameter for the length of a history.
pub(super) fn history_seconds() -> Value {
    let schema = json!({
        "type": "integer", "minimum": SECONDS.least, "maximum": SECONDS.most,
        "default": SECONDS.most,
    });
    query(SECONDS.name, &schema, "The last seconds to return.")
}

/// Returns the parameter for the series of pools in the metrics.
pub(super) fn metrics_pools() -> Value {
    let schema = json!({
        "type": "integer", "minimum": POOLS.least, "maximum": POOLS.most, "default": POOLS.most,
    });
    query(POOLS.name, &schema, "Whether the metrics contain the series of single pools.")
}

/// Returns the parameter for the states in which a key is active.
pub(super) fn states() -> Value {
    let state = format!("({})", KeyState::ALL.map(KeyState::as_str).join("|"));
    query(
        "states",
        &json!({ "type": "string", "default": "leased", "pattern": format!("^{state}(,{state})*$") }),
        "The states in which a key is active, separated by commas: `leased`, `available`, `resting`, \
         `quarantined`.",
    )
}

pub(super) fn forwarded_key() -> Value {
    json!({
        "name": "X-Api-Key", "in": "header", "schema": { "type": "string" },
        "description": "The key of the forwarded request. Without it the answer is 401.",
    })
}

fn query(name: &str, schema: &Value, text: &str) -> Value {
    json!({ "name": name, "in": "query", "schema": schema, "description": text })
}

pub(super) fn prefer() -> Value {
    json!({
        "name": "Prefer", "in": "header", "schema": { "type": "string" }, "example": "wait=30",
        "description": "`wait=N` (RFC 7240) asks to wait N seconds, as `wait_seconds` does. If \
                        both are sent, `wait_seconds` applies. A preference that the server cannot \
                        read is ignored.",
    })
}

pub(super) fn pool_condition(can_create: bool) -> Vec<Value> {
    let header = |name: &str, text: &str| {
        json!({
            "name": name, "in": "header", "schema": { "type": "string" }, "description": text,
        })
    };
    let exists = header(
        "If-Match",
        "`*`: the pool must exist. The server gives no entity tags, so any other value is false.",
    );
    let missing = header("If-None-Match", "`*`: the pool must not exist, so that it is created.");
    if can_create { vec![exists, missing] } else { vec![exists] }
}

pub(super) fn last_event_id() -> Value {
    json!({
        "name": "Last-Event-ID", "in": "header", "schema": { "type": "string" },
        "description": "The `id` of the last event that the client has handled. The stream resumes \
                        after it, or begins with a `resync`.",
    })
}

pub(super) fn idempotency_key() -> Value {
    json!({
        "name": "Idempotency-Key", "in": "header",
        "schema": { "type": "string", "pattern": format!("^[!-~]{{1,{IDEMPOTENCY_KEY_MAX}}}$") },
        "description": "Visible characters. The server applies a request with this key \
                        once; a repeat with the same body gets the stored answer. Refusals are not \
                        stored.",
    })
}

pub(super) fn api_key() -> Value {
    json!({
        "name": "api_key", "in": "query", "schema": { "type": "string" },
        "description": "The value of the key. Without it no key matches.",
    })
}
