//! Keys over HTTP: generate, import, list, show, put back, delete, keep alive.

use super::body::{Fields, Known, VALUES_BODY_MAX, wrong_type};
use super::error::Problem;
use super::idempotency::{self, Once};
use super::query::Query;
use super::{Answered, Asking, Request, SHAPES, json, no_content, pool_name};
use hyper::StatusCode;
use keypeg_client as wire;
use keypeg_client::UnixMs;
use keypeg_engine::core::{
    Cursor, KeyId, KeyRef, KeyState, KeyView, LeaseView, NewKey, PoolName, Refusal, Secret,
};
use keypeg_engine::{Call, GENERATE_MAX, PAGE_MAX, Reply, RequestError};
use serde_json::Value;

const GENERATE: Known = &["count", "values"];
const COUNT: &str = "1..10000";
const VALUES: &str = "an array of 1..10000 strings of 1..4096 bytes";
const STATES: &str = "available, leased, resting, quarantined";
/// Keys of a page where the request does not say.
const LIMIT: usize = 100;
const KEEP_ALIVE: Known = &["ids", "all"];
const IDS: &str = "an array of at most 10000 key ids";

/// Lists keys, without their values.
pub(super) async fn list(app: &Asking<'_>, pool: &str, query: Option<&str>) -> Answered {
    let pool = pool_name(pool)?;
    let (state, limit, cursor) = app.judged(&pool, listed(query)).await?;
    let call = Call::ListKeys { pool: pool.clone(), state, limit, cursor };
    let Reply::Page(page) = app.ask(call).await? else { unreachable!("{SHAPES}") };
    let next_cursor = page.next.map(|cursor| cursor.to_string());
    let keys = page.keys.into_iter().map(|key| shown(&pool, key)).collect();
    Ok(json(StatusCode::OK, &wire::KeyPage { keys, next_cursor }))
}

type Listed = (Option<KeyState>, usize, Option<Cursor>);

fn listed(query: Option<&str>) -> Result<Listed, Problem> {
    let query = Query::read(query, &["state", "limit", "cursor"])?;
    let state = match query.get("state") {
        None => None,
        Some("available") => Some(KeyState::Available),
        Some("leased") => Some(KeyState::Leased),
        Some("resting") => Some(KeyState::Resting),
        Some("quarantined") => Some(KeyState::Quarantined),
        Some(_) => return Err(Problem::out_of_range("state", STATES)),
    };
    let limit = query.get("limit").map_or(Ok(LIMIT), |text| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let limit = digits.then(|| text.parse().ok()).flatten();
        limit
            .filter(|limit| (1..=PAGE_MAX).contains(limit))
            .ok_or_else(|| Problem::out_of_range("limit", "1..1000"))
    });
    let bad_cursor = || Problem::refused(&RequestError::Refused(Refusal::BadCursor));
    let cursor = query.get("cursor").map(|text| Cursor::parse(text).ok_or_else(bad_cursor));
    Ok((state, limit?, cursor.transpose()?))
}

/// Makes keys, or brings values in.
pub(super) async fn add(app: &Asking<'_>, pool: &str, request: Request) -> Answered {
    let pool = pool_name(pool)?;
    let (once, added) = app.judged(&pool, added(request).await).await?;
    let call = match added {
        Added::Made(count) => Call::Generate { pool, count },
        Added::BroughtIn(values) => Call::Import { pool, values },
    };
    let Reply::Keys(keys) = app.ask(idempotency::asked(once, call)).await? else {
        unreachable!("{SHAPES}")
    };
    let keys = keys.iter().map(new_key).collect();
    Ok(json(StatusCode::CREATED, &wire::NewKeys { keys }))
}

enum Added {
    Made(u32),
    BroughtIn(Vec<Secret>),
}

async fn added(request: Request) -> Result<(Option<Once>, Added), Problem> {
    let key = idempotency::key(request.headers())?;
    let mut fields = Fields::read_up_to(VALUES_BODY_MAX, request, GENERATE).await?;
    let once = Once::of(key, &fields);
    let count = fields.integer("count", COUNT)?;
    let added = match (count, fields.take("values")) {
        (None, Some(values)) => brought_in(values).map(Added::BroughtIn),
        (Some(_), Some(_)) => Err(Problem::out_of_range("count", "left out beside values")),
        (count, None) => u32::try_from(count.unwrap_or(1))
            .ok()
            .filter(|count| (1..=GENERATE_MAX).contains(count))
            .map(Added::Made)
            .ok_or_else(|| Problem::out_of_range("count", COUNT)),
    };
    Ok((once, added?))
}

fn brought_in(values: Value) -> Result<Vec<Secret>, Problem> {
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

pub(super) async fn show(app: &Asking<'_>, pool: &str, key: &str) -> Answered {
    let pool = pool_name(pool)?;
    let key = app.judged(&pool, key_ref(key)).await?;
    let call = Call::GetKey { pool: pool.clone(), key };
    let Reply::Key(view) = app.ask(call).await? else { unreachable!("{SHAPES}") };
    Ok(json(StatusCode::OK, &shown(&pool, *view)))
}

/// Shows a key's value to somebody it was not lent to.
pub(super) async fn reveal(app: &Asking<'_>, pool: &str, key: &str, request: Request) -> Answered {
    let pool = pool_name(pool)?;
    let read = Fields::read(request, &[]).await.and_then(|_| key_ref(key));
    let key = app.judged(&pool, read).await?;
    let Reply::Revealed { id, value } = app.ask(Call::Reveal { pool, key }).await? else {
        unreachable!("{SHAPES}")
    };
    let key = wire::Secret(value.reveal().into());
    Ok(json(StatusCode::OK, &wire::RevealedKey { id: id.to_string(), key }))
}

pub(super) async fn remove(app: &Asking<'_>, pool: &str, key: &str) -> Answered {
    let pool = pool_name(pool)?;
    let key = app.judged(&pool, key_ref(key)).await?;
    let Reply::Done = app.ask(Call::DeleteKey { pool, key }).await? else {
        unreachable!("{SHAPES}")
    };
    Ok(no_content())
}

pub(super) async fn release(app: &Asking<'_>, pool: &str, key: &str, request: Request) -> Answered {
    let pool = pool_name(pool)?;
    let key = app.judged(&pool, bare(request, key).await).await?;
    let Reply::KeyReleased { released } = app.ask(Call::ForceRelease { pool, key }).await? else {
        unreachable!("{SHAPES}")
    };
    Ok(json(StatusCode::OK, &wire::KeyReleased { released }))
}

pub(super) async fn keep_alive(
    app: &Asking<'_>,
    pool: &str,
    key: &str,
    request: Request,
) -> Answered {
    let pool = pool_name(pool)?;
    let key = app.judged(&pool, bare(request, key).await).await?;
    let reply = app.ask(Call::KeepAlive { pool, key }).await?;
    Ok(json(StatusCode::OK, &kept(&reply)))
}

pub(super) fn kept(reply: &Reply) -> wire::KeptAlive {
    let Reply::KeptAlive { id, expires_at_ms } = *reply else { unreachable!("{SHAPES}") };
    wire::KeptAlive { id: id.to_string(), expires_at: expires_at_ms.map(UnixMs) }
}

/// Reads a request that names a key and has nothing else to say.
async fn bare(request: Request, key: &str) -> Result<KeyRef, Problem> {
    Fields::read(request, &[]).await?;
    key_ref(key)
}

pub(super) async fn keep_alive_many(app: &Asking<'_>, pool: &str, request: Request) -> Answered {
    let pool = pool_name(pool)?;
    let fields = Fields::read(request, KEEP_ALIVE).await;
    let asked = app.judged(&pool, fields.and_then(kept_alive)).await?;
    let (call, mut missing) = match asked {
        KeptAlive::All => (Call::KeepAliveAll { pool }, Vec::new()),
        KeptAlive::These { keys, ill_formed } => (Call::KeepAliveMany { pool, keys }, ill_formed),
    };
    let Reply::KeptAliveMany { kept, missing: not_there } = app.ask(call).await? else {
        unreachable!("{SHAPES}")
    };
    missing.extend(not_there.iter().map(KeyId::to_string));
    Ok(json(StatusCode::OK, &wire::KeptAliveMany { kept, missing }))
}

enum KeptAlive {
    All,
    These { keys: Vec<KeyId>, ill_formed: Vec<String> },
}

fn kept_alive(mut fields: Fields) -> Result<KeptAlive, Problem> {
    match (fields.take("ids"), fields.take("all")) {
        (Some(ids), None) => these(ids),
        (None, Some(Value::Bool(true))) => Ok(KeptAlive::All),
        (None, Some(Value::Bool(false))) => Err(Problem::out_of_range("all", "true")),
        (None, Some(other)) => Err(wrong_type("all", "true", &other)),
        (Some(_), Some(_)) => Err(Problem::out_of_range("all", "left out beside ids")),
        (None, None) => Err(Problem::out_of_range("ids", "there, or all must be true")),
    }
}

/// An id that could not be a key's is missing like any other that is no key's.
fn these(ids: Value) -> Result<KeptAlive, Problem> {
    let Value::Array(ids) = ids else { return Err(wrong_type("ids", IDS, &ids)) };
    if ids.len() > GENERATE_MAX as usize {
        return Err(Problem::out_of_range("ids", IDS));
    }
    let mut keys = Vec::with_capacity(ids.len());
    let mut ill_formed = Vec::new();
    for id in ids {
        let Value::String(id) = id else { return Err(wrong_type("ids", IDS, &id)) };
        match KeyId::parse(&id) {
            Some(key) => keys.push(key),
            None => ill_formed.push(id),
        }
    }
    Ok(KeptAlive::These { keys, ill_formed })
}

pub(super) fn key_ref(text: &str) -> Result<KeyRef, Problem> {
    KeyId::parse(text)
        .map(KeyRef::Id)
        .ok_or_else(|| Problem::refused(&RequestError::Refused(Refusal::UnknownKey)))
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

fn shown(pool: &PoolName, view: KeyView) -> wire::Key {
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
        lease: view.lease.map(shown_lease),
    }
}

fn shown_lease(lease: LeaseView) -> wire::KeyLease {
    wire::KeyLease {
        holder: lease.holder.map(Into::into),
        fencing_token: lease.token,
        granted_at: UnixMs(lease.granted_at_ms),
        expires_at: UnixMs(lease.expires_at_ms),
    }
}
