//! Keys over HTTP: generate, show, put back, delete, keep alive.

use super::body::{Fields, Known, wrong_type};
use super::error::Problem;
use super::{Answered, App, Request, SHAPES, json, no_content, pool_name, refuse_idempotency_key};
use hyper::StatusCode;
use keypeg_client as wire;
use keypeg_client::UnixMs;
use keypeg_engine::core::{
    KeyId, KeyRef, KeyState, KeyView, LeaseView, NewKey, PoolName, Refusal as Denied,
};
use keypeg_engine::{Call, GENERATE_MAX, Refusal, Reply};
use serde_json::Value;

const GENERATE: Known = Known { now: &["count"], later: &["values"] };
const COUNT: &str = "1..10000";
const KEEP_ALIVE: Known = Known { now: &["ids", "all"], later: &[] };
const IDS: &str = "an array of at most 10000 key ids";

pub(super) async fn generate(app: &App, pool: &str, request: Request) -> Answered {
    let pool = pool_name(pool)?;
    let count = app.judged(&pool, count(request).await).await?;
    let Reply::Keys(keys) = app.ask(Call::Generate { pool, count }).await? else {
        unreachable!("{SHAPES}")
    };
    let keys = keys.iter().map(new_key).collect();
    Ok(json(StatusCode::CREATED, &wire::NewKeys { keys }))
}

async fn count(request: Request) -> Result<u32, Problem> {
    refuse_idempotency_key(request.headers())?;
    let count = Fields::read(request, GENERATE).await?.integer("count", COUNT)?.unwrap_or(1);
    u32::try_from(count)
        .ok()
        .filter(|count| (1..=GENERATE_MAX).contains(count))
        .ok_or_else(|| Problem::out_of_range("count", COUNT))
}

pub(super) async fn show(app: &App, pool: &str, key: &str) -> Answered {
    let pool = pool_name(pool)?;
    let key = app.judged(&pool, key_ref(key)).await?;
    let call = Call::ShowKey { pool: pool.clone(), key };
    let Reply::Key(view) = app.ask(call).await? else { unreachable!("{SHAPES}") };
    Ok(json(StatusCode::OK, &shown(&pool, *view)))
}

pub(super) async fn remove(app: &App, pool: &str, key: &str) -> Answered {
    let pool = pool_name(pool)?;
    let key = app.judged(&pool, key_ref(key)).await?;
    let Reply::Done = app.ask(Call::DeleteKey { pool, key }).await? else {
        unreachable!("{SHAPES}")
    };
    Ok(no_content())
}

pub(super) async fn release(app: &App, pool: &str, key: &str, request: Request) -> Answered {
    let pool = pool_name(pool)?;
    let key = app.judged(&pool, bare(request, key).await).await?;
    let Reply::Freed { released } = app.ask(Call::ReleaseKey { pool, key }).await? else {
        unreachable!("{SHAPES}")
    };
    Ok(json(StatusCode::OK, &wire::Freed { released }))
}

pub(super) async fn keep_alive(app: &App, pool: &str, key: &str, request: Request) -> Answered {
    let pool = pool_name(pool)?;
    let key = app.judged(&pool, bare(request, key).await).await?;
    let Reply::Kept { id, expires_at_ms } = app.ask(Call::KeepAlive { pool, key }).await? else {
        unreachable!("{SHAPES}")
    };
    let kept = wire::Kept { id: id.to_string(), expires_at: expires_at_ms.map(UnixMs) };
    Ok(json(StatusCode::OK, &kept))
}

/// Reads a request that names a key and has nothing else to say.
async fn bare(request: Request, key: &str) -> Result<KeyRef, Problem> {
    Fields::read(request, Known::NONE).await?;
    key_ref(key)
}

pub(super) async fn keep_alive_many(app: &App, pool: &str, request: Request) -> Answered {
    let pool = pool_name(pool)?;
    let fields = Fields::read(request, KEEP_ALIVE).await;
    let asked = app.judged(&pool, fields.and_then(kept_alive)).await?;
    let (call, mut missing) = match asked {
        KeptAlive::All => (Call::KeepAliveAll { pool }, Vec::new()),
        KeptAlive::These { keys, ill_formed } => (Call::KeepAliveMany { pool, keys }, ill_formed),
    };
    let Reply::KeptMany { kept, missing: not_there } = app.ask(call).await? else {
        unreachable!("{SHAPES}")
    };
    missing.extend(not_there.iter().map(KeyId::to_string));
    Ok(json(StatusCode::OK, &wire::KeptMany { kept, missing }))
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
        .ok_or_else(|| Problem::refused(&Refusal::Denied(Denied::UnknownKey)))
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
        reason: None,
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
