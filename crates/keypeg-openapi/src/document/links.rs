//! The links between operations: which member of an answer names the resource of another call.
//!
//! Does not know the answers themselves, which are in `calls`.

use serde_json::{Value, json};

/// Returns the links of an operation's answer: name, operation, and its parameters.
pub(super) fn links(operation: &str) -> Value {
    const POOL: &str = "$request.path.pool";
    let key = |operation, id| {
        let parameters = json!({ "pool": POOL, "id": id });
        json!({ "operationId": operation, "parameters": parameters })
    };
    let lease = |operation| {
        let parameters = json!({ "pool": POOL, "lease": "$response.body#/id" });
        json!({ "operationId": operation, "parameters": parameters })
    };
    let simple = |operation| {
        let parameters = json!({ "id": "$response.body#/keyId" });
        json!({ "operationId": operation, "parameters": parameters })
    };
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
            "quarantineKey": key("quarantineKey", "$response.body#/key_id"),
        }),
        "plainGenerate" => json!({
            "show": simple("plainShow"),
            "delete": simple("plainDelete"),
            "keepAlive": simple("plainKeepAlive"),
        }),
        "plainAcquire" => json!({ "release": simple("plainRelease") }),
        _ => Value::Null,
    }
}
