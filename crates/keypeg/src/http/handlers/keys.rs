//! The key routes: generate, import, list, show, reveal, delete, force-release, keep alive.
//!
//! A key's value leaves the server only when the key is created or granted, or by reveal.

use super::operation::Operation;
use crate::http::admit::{REPLY_VARIANT, RequestContext};
use crate::http::error::Problem;
use crate::http::message::Request;
use crate::http::parse::body::{Fields, KnownFields, VALUES_BODY_MAX, wrong_type};
use crate::http::parse::idempotency::{self, KeyAndDigest};
use crate::http::parse::path::{key_ref, pool_name};
use crate::http::parse::query::Query;
use crate::http::respond::{HandlerResult, json_response, no_content};
use hyper::StatusCode;
use keypeg_client as wire;
use keypeg_client::UnixMs;
use keypeg_client::routes::Scope;
use keypeg_core::{
    Cursor, ImportOptions, KeyId, KeyRef, KeyState, KeyView, LeaseView, NewKey, PoolName, Refusal,
    Secret,
};
use keypeg_store::{Call, GENERATE_MAX, PAGE_MAX, Reply, RequestError};
use serde_json::Value;

const ADD_FIELDS: KnownFields = &["count", "values", "keepalive", "allow_retired"];
const COUNT: &str = "1..10000";
const VALUES: &str = "an array of 1..10000 strings of 1..4096 bytes";
const STATES: &str = "available, leased, resting, quarantined";
/// The page size if the request gives none.
const DEFAULT_LIMIT: usize = 100;
const KEEP_ALIVE_FIELDS: KnownFields = &["ids", "all"];
const IDS: &str = "an array of at most 10000 key ids";

/// Lists keys, without their values.
pub(crate) async fn list(
    context: &RequestContext<'_>,
    pool: &str,
    query: Option<&str>,
) -> HandlerResult {
    let pool = pool_name(pool)?;
    let ListArgs { state, limit, cursor } =
        context.or_unknown_pool(&pool, list_args(query)).await?;
    let call = Call::ListKeys { pool: pool.clone(), state, limit, cursor };
    let Reply::Page(page) = context.execute(call).await? else { unreachable!("{REPLY_VARIANT}") };
    let next_cursor = page.next.map(|cursor| cursor.to_string());
    let keys = page.keys.into_iter().map(|key| wire_key(&pool, key)).collect();
    Ok(json_response(StatusCode::OK, &wire::KeyPage { keys, next_cursor }))
}

struct ListArgs {
    state: Option<KeyState>,
    limit: usize,
    cursor: Option<Cursor>,
}

fn list_args(query: Option<&str>) -> Result<ListArgs, Problem> {
    let query = Query::read(query, &["state", "limit", "cursor"])?;
    let state = match query.get("state") {
        None => None,
        Some("available") => Some(KeyState::Available),
        Some("leased") => Some(KeyState::Leased),
        Some("resting") => Some(KeyState::Resting),
        Some("quarantined") => Some(KeyState::Quarantined),
        Some(_) => return Err(Problem::out_of_range("state", STATES)),
    };
    let limit = query.get("limit").map_or(Ok(DEFAULT_LIMIT), |text| {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let limit = is_number.then(|| text.parse().ok()).flatten();
        limit
            .filter(|limit| (1..=PAGE_MAX).contains(limit))
            .ok_or_else(|| Problem::out_of_range("limit", "1..1000"))
    });
    let bad_cursor = || Problem::refused(&RequestError::Refused(Refusal::BadCursor));
    let cursor = query.get("cursor").map(|text| Cursor::parse(text).ok_or_else(bad_cursor));
    Ok(ListArgs { state, limit: limit?, cursor: cursor.transpose()? })
}

/// Generates keys or imports values.
pub(crate) async fn add(
    context: &RequestContext<'_>,
    pool: &str,
    request: Request,
) -> HandlerResult {
    let pool = pool_name(pool)?;
    let (key, new) = context.or_unknown_pool(&pool, read_add(request).await).await?;
    let call = match new {
        KeysToAdd::Generated(count) => Call::Generate { pool, count },
        KeysToAdd::Imported(values, options) => {
            if options.allow_retired {
                context.require(Scope::Admin)?;
            }
            Call::Import { pool, values, options }
        }
    };
    let call = idempotency::with_key(key, call);
    let Reply::Keys(keys) = context.execute(call).await? else { unreachable!("{REPLY_VARIANT}") };
    let keys = keys.iter().map(new_key).collect();
    Ok(json_response(StatusCode::CREATED, &wire::NewKeys { keys }))
}

/// The keys that a request adds.
enum KeysToAdd {
    Generated(u32),
    Imported(Vec<Secret>, ImportOptions),
}

async fn read_add(request: Request) -> Result<(Option<KeyAndDigest>, KeysToAdd), Problem> {
    let key = idempotency::header(request.headers())?;
    let mut fields = Fields::read_up_to(VALUES_BODY_MAX, request, ADD_FIELDS).await?;
    let key = KeyAndDigest::of(key, &fields);
    let count = fields.integer("count", COUNT)?;
    let values = fields.take("values");
    let options = import_options(&mut fields, values.is_some())?;
    let new = match (count, values) {
        (None, Some(values)) => {
            read_values(values).map(|values| KeysToAdd::Imported(values, options))
        }
        (Some(_), Some(_)) => Err(Problem::out_of_range("count", "left out when values is given")),
        (count, None) => u32::try_from(count.unwrap_or(1))
            .ok()
            .filter(|count| (1..=GENERATE_MAX).contains(count))
            .map(KeysToAdd::Generated)
            .ok_or_else(|| Problem::out_of_range("count", COUNT)),
    };
    Ok((key, new?))
}

/// Reads the options of an import, which no other request may have.
fn import_options(fields: &mut Fields, imports: bool) -> Result<ImportOptions, Problem> {
    let mut option = |name| match fields.boolean(name)? {
        Some(_) if !imports => Err(Problem::out_of_range(name, "left out unless values is given")),
        flag => Ok(flag),
    };
    let (keepalive, allow_retired) = (option("keepalive")?, option("allow_retired")?);
    let ImportOptions { keepalive: by_default, .. } = ImportOptions::default();
    Ok(ImportOptions {
        keepalive: keepalive.unwrap_or(by_default),
        allow_retired: allow_retired.unwrap_or_default(),
    })
}

fn read_values(values: Value) -> Result<Vec<Secret>, Problem> {
    let Value::Array(values) = values else { return Err(wrong_type("values", VALUES, &values)) };
    if values.is_empty() || values.len() > GENERATE_MAX as usize {
        return Err(Problem::out_of_range("values", VALUES));
    }
    let secret = |value: &Value| match value {
        Value::String(text) => {
            Secret::new(text).ok_or_else(|| Problem::out_of_range("values", VALUES))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            Err(wrong_type("values", VALUES, value))
        }
    };
    values.iter().map(secret).collect()
}

/// Shows a key without its value.
pub(crate) async fn show(context: &RequestContext<'_>, pool: &str, key: &str) -> HandlerResult {
    let pool = pool_name(pool)?;
    let key = context.or_unknown_pool(&pool, key_ref(key)).await?;
    let call = Call::GetKey { pool: pool.clone(), key };
    let Reply::Key(view) = context.execute(call).await? else { unreachable!("{REPLY_VARIANT}") };
    Ok(json_response(StatusCode::OK, &wire_key(&pool, *view)))
}

/// Returns a key's value without leasing the key.
pub(crate) async fn reveal(
    context: &RequestContext<'_>,
    pool: &str,
    key: &str,
    request: Request,
) -> HandlerResult {
    let pool = pool_name(pool)?;
    let key = context.or_unknown_pool(&pool, read_key_only(request, key).await).await?;
    let Reply::Revealed { id, value } = context.execute(Call::Reveal { pool, key }).await? else {
        unreachable!("{REPLY_VARIANT}")
    };
    let key = wire::Secret(value.reveal().into());
    Ok(json_response(StatusCode::OK, &wire::RevealedKey { id: id.to_string(), key }))
}

/// Deletes a key.
pub(crate) async fn delete(context: &RequestContext<'_>, pool: &str, key: &str) -> HandlerResult {
    let pool = pool_name(pool)?;
    let key = context.or_unknown_pool(&pool, key_ref(key)).await?;
    let Reply::Done = context.execute(Call::DeleteKey { pool, key }).await? else {
        unreachable!("{REPLY_VARIANT}")
    };
    Ok(no_content())
}

/// Force-releases a key: ends its lease, rest or quarantine by the key id.
pub(crate) async fn force_release(
    context: &RequestContext<'_>,
    pool: &str,
    key: &str,
    request: Request,
) -> HandlerResult {
    let pool = pool_name(pool)?;
    let key = context.or_unknown_pool(&pool, read_key_only(request, key).await).await?;
    let Reply::KeyReleased { released } = context.execute(Call::ForceRelease { pool, key }).await?
    else {
        unreachable!("{REPLY_VARIANT}")
    };
    Ok(json_response(StatusCode::OK, &wire::KeyReleased { released }))
}

/// Keeps one key alive.
pub(crate) async fn keep_alive(
    context: &RequestContext<'_>,
    pool: &str,
    key: &str,
    request: Request,
) -> HandlerResult {
    let pool = pool_name(pool)?;
    let key = context.or_unknown_pool(&pool, read_key_only(request, key).await).await?;
    Ok(Operation::keep_alive(pool, key).run(context).await?.to_response())
}

/// Reads a request whose only argument is the key in its path.
async fn read_key_only(request: Request, key: &str) -> Result<KeyRef, Problem> {
    Fields::read(request, &[]).await?;
    key_ref(key)
}

/// Keeps the given keys, or all keys of a pool, alive.
pub(crate) async fn keep_alive_many(
    context: &RequestContext<'_>,
    pool: &str,
    request: Request,
) -> HandlerResult {
    let pool = pool_name(pool)?;
    let fields = Fields::read(request, KEEP_ALIVE_FIELDS).await;
    let targets = context.or_unknown_pool(&pool, fields.and_then(keep_alive_targets)).await?;
    let (call, mut missing) = match targets {
        KeepAliveTargets::All => (Call::KeepAliveAll { pool }, Vec::new()),
        KeepAliveTargets::Keys { keys, malformed } => {
            (Call::KeepAliveMany { pool, keys }, malformed)
        }
    };
    let Reply::KeptAliveMany { kept, missing: unknown } = context.execute(call).await? else {
        unreachable!("{REPLY_VARIANT}")
    };
    missing.extend(unknown.iter().map(KeyId::to_string));
    Ok(json_response(StatusCode::OK, &wire::KeptAliveMany { kept, missing }))
}

/// The keys that one keep-alive request names.
enum KeepAliveTargets {
    All,
    Keys { keys: Vec<KeyId>, malformed: Vec<String> },
}

fn keep_alive_targets(mut fields: Fields) -> Result<KeepAliveTargets, Problem> {
    match (fields.take("ids"), fields.take("all")) {
        (Some(ids), None) => read_ids(ids),
        (None, Some(Value::Bool(true))) => Ok(KeepAliveTargets::All),
        (None, Some(Value::Bool(false))) => Err(Problem::out_of_range("all", "true")),
        (None, Some(other)) => Err(wrong_type("all", "true", &other)),
        (Some(_), Some(_)) => Err(Problem::out_of_range("all", "left out when ids is given")),
        (None, None) => Err(Problem::out_of_range("ids", "given, unless all is true")),
    }
}

/// Reads key ids. A malformed id is collected for the response's `missing`, like an unknown one.
fn read_ids(ids: Value) -> Result<KeepAliveTargets, Problem> {
    let Value::Array(ids) = ids else { return Err(wrong_type("ids", IDS, &ids)) };
    if ids.len() > GENERATE_MAX as usize {
        return Err(Problem::out_of_range("ids", IDS));
    }
    let mut keys = Vec::with_capacity(ids.len());
    let mut malformed = Vec::new();
    for id in ids {
        let Value::String(id) = id else { return Err(wrong_type("ids", IDS, &id)) };
        match KeyId::parse(&id) {
            Some(key) => keys.push(key),
            None => malformed.push(id),
        }
    }
    Ok(KeepAliveTargets::Keys { keys, malformed })
}

fn new_key(key: &NewKey) -> wire::NewKey {
    wire::NewKey {
        id: key.id.to_string(),
        key: wire::Secret(key.value.reveal().into()),
        state: wire::KeyState::Available,
        created_at: UnixMs(key.created_at_ms),
        expires_at: key.expires_at_ms.map(UnixMs),
    }
}

fn wire_key(pool: &PoolName, view: KeyView) -> wire::Key {
    wire::Key {
        id: view.id.to_string(),
        pool: pool.as_str().into(),
        state: match view.state {
            KeyState::Available => wire::KeyState::Available,
            KeyState::Leased => wire::KeyState::Leased,
            KeyState::Resting => wire::KeyState::Resting,
            KeyState::Quarantined => wire::KeyState::Quarantined,
        },
        created_at: UnixMs(view.created_at_ms),
        expires_at: view.expires_at_ms.map(UnixMs),
        rests_until: view.rests_until_ms.map(UnixMs),
        reason: view.reason.map(Into::into),
        keepalive: view.keepalive,
        lease: view.lease.map(wire_lease),
    }
}

fn wire_lease(lease: LeaseView) -> wire::KeyLease {
    wire::KeyLease {
        holder: lease.holder.map(Into::into),
        fencing_token: lease.token,
        granted_at: UnixMs(lease.granted_at_ms),
        expires_at: UnixMs(lease.expires_at_ms),
    }
}
