//! Parameters in queries and headers.

use serde_json::{Value, json};

pub(super) fn listing() -> Vec<Value> {
    let parameter = |name, schema, text| json!({ "name": name, "in": "query", "schema": schema, "description": text });
    vec![
        parameter(
            "state",
            json!({ "$ref": "#/components/schemas/KeyState" }),
            "Only keys that stand so; all when left out.",
        ),
        parameter(
            "limit",
            json!({ "type": "integer", "minimum": 1, "maximum": 1000, "default": 100 }),
            "Keys on a page.",
        ),
        parameter(
            "cursor",
            json!({ "type": "string" }),
            "The last page's `next_cursor`; the beginning when left out.",
        ),
    ]
}

pub(super) fn prefer() -> Value {
    json!({
        "name": "Prefer", "in": "header", "schema": { "type": "string" }, "example": "wait=30",
        "description": "`wait=N` (RFC 7240) is the same wait as `wait_seconds`, which wins. A wish: \
                        what cannot be read of it is as if it were not there.",
    })
}

pub(super) fn last_event_id() -> Value {
    json!({
        "name": "Last-Event-ID", "in": "header", "schema": { "type": "string" },
        "description": "The `id` of the last event that was taken: the stream goes on after it, or \
                        begins with a `resync`.",
    })
}

pub(super) fn idempotency_key() -> Value {
    json!({
        "name": "Idempotency-Key", "in": "header",
        "schema": { "type": "string", "pattern": "^[!-~]{1,128}$" },
        "description": "1 to 128 visible characters: what is asked under it happens once, and is answered \
                        the same when it is asked again with the same body. A refusal is not remembered.",
    })
}

pub(super) fn api_key() -> Value {
    json!({
        "name": "api_key", "in": "query", "schema": { "type": "string" },
        "description": "The key's value. Without it no key is meant.",
    })
}
