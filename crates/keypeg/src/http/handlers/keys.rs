//! The key routes: generate, import, list, show, label, reveal, delete, force-release, quarantine,
//! keep alive.
//!
//! A key's value leaves the server only when the key is created or granted, or by reveal.

use super::operation::Operation;
use super::payload::{wire_lease, wire_state};
use crate::http::admit::RequestContext;
use crate::http::error::Problem;
use crate::http::message::Request;
use crate::http::parse::body;
use crate::http::parse::keys::{
    ChangeKeyBody, KeepAliveBody, KeepAliveTargets, KeysToAdd, QuarantineBody, read_add,
};
use crate::http::parse::members::{Ids, NoFields};
use crate::http::parse::path::{key_ref, pool_name};
use crate::http::parse::query::Query;
use crate::http::respond::{HandlerResult, json_response, no_content, with_location};
use hyper::StatusCode;
use keypeg_client as wire;
use keypeg_client::UnixMs;
use keypeg_client::routes::{self, Scope};
use keypeg_core::{
    Cursor, ForceReleased, KeptAliveMany, KeyId, KeyQuarantined, KeyRef, KeyState, KeyView,
    ListOptions, NewKey, NewLabels, PoolName, Refusal, Secret,
};
use keypeg_fields::{Field, LABEL};
use keypeg_store::{Call, KEEP_ALIVE_MAX, RequestError, Revealed};
use std::collections::HashSet;

/// The page size if the request gives none.
const DEFAULT_LIMIT: usize = 100;
/// What one key of a page takes while the page is built: its view, its wire type and its JSON.
const LISTED_KEY_BYTES: u64 = 1 << 10;
/// What one new key takes while the response is built, apart from its value.
const NEW_KEY_BYTES: u64 = 512;

/// Lists keys, without their values.
pub(crate) async fn list(
    context: &RequestContext<'_>,
    pool: &str,
    query: Option<&str>,
) -> HandlerResult {
    let pool = pool_name(pool)?;
    let options = context.or_unknown_pool(&pool, list_options(query)).await?;
    let room = context.answer_room(options.limit as u64 * LISTED_KEY_BYTES)?;
    let page = context.execute(Call::list_keys(pool.clone(), options)).await?;
    let next_cursor = page.next.map(|cursor| cursor.to_string());
    let keys = page.keys.into_iter().map(|key| wire_key(&pool, key)).collect();
    Ok(room.fill(json_response(StatusCode::OK, &wire::KeyPage { keys, next_cursor })))
}

fn list_options(query: Option<&str>) -> Result<ListOptions, Problem> {
    let query = Query::read(query, &["state", "label", "limit", "cursor"])?;
    let state = match query.get("state") {
        None => None,
        Some("available") => Some(KeyState::Available),
        Some("leased") => Some(KeyState::Leased),
        Some("resting") => Some(KeyState::Resting),
        Some("quarantined") => Some(KeyState::Quarantined),
        Some(_) => {
            let states = wire::KeyState::ALL.map(wire::KeyState::as_str).join(", ");
            return Err(Problem::out_of_range("state", &format!("one of {states}")));
        }
    };
    let label = query.get("label").filter(|label| !label.is_empty());
    if label.is_some_and(|label| !LABEL.allows(label)) {
        return Err(Problem::not_allowed(Field::Text(&LABEL)));
    }
    let limit = query.limit(DEFAULT_LIMIT);
    let bad_cursor = || Problem::refused(&RequestError::Refused(Refusal::BadCursor));
    let cursor = query.get("cursor").map(|text| Cursor::parse(text).ok_or_else(bad_cursor));
    let (limit, label) = (limit?, label.map(Into::into));
    Ok(ListOptions { state, label, limit, cursor: cursor.transpose()? })
}

/// Generates keys or imports values.
pub(crate) async fn add(
    context: &RequestContext<'_>,
    pool: &str,
    request: Request,
) -> HandlerResult {
    let pool = pool_name(pool)?;
    let path = routes::keys(pool.as_str());
    let (idempotency, new) =
        context.or_unknown_pool(&pool, read_add(context, request).await).await?;
    let room = context.answer_room(new_keys_bytes(&new))?;
    let call = match new {
        KeysToAdd::Generated(count, labels) => Call::generate(pool, count).with_labels(labels),
        KeysToAdd::Imported(values, options, labels) => {
            if options.allow_retired {
                context.require(Scope::Admin)?;
            }
            Call::import(pool, values, options).with_labels(labels)
        }
    };
    let keys = context.execute_once(call, idempotency).await?;
    let path = if let [key] = &keys[..] { Some(format!("{path}/{}", key.id)) } else { None };
    let keys = keys.iter().map(new_key).collect();
    let response = room.fill(json_response(StatusCode::CREATED, &wire::NewKeys { keys }));
    Ok(match path {
        Some(path) => with_location(response, &path),
        None => response,
    })
}

/// Estimates the bytes of a response with new keys, which has their values twice until it is sent.
fn new_keys_bytes(new: &KeysToAdd) -> u64 {
    match new {
        KeysToAdd::Generated(count, labels) => {
            u64::from(*count) * NEW_KEY_BYTES + labels_bytes(labels, *count as usize)
        }
        KeysToAdd::Imported(values, _, labels) => {
            let of_value = |value: &Secret| NEW_KEY_BYTES + 2 * value.reveal().len() as u64;
            values.iter().map(of_value).sum::<u64>() + labels_bytes(labels, values.len())
        }
    }
}

/// Returns the bytes of labels in a response, where each is in the wire type and in its JSON.
fn labels_bytes(labels: &NewLabels, count: usize) -> u64 {
    let bytes: usize = match labels {
        NewLabels::None => 0,
        NewLabels::All(label) => count * label.len(),
        NewLabels::Each(labels) => labels.iter().flatten().map(|label| label.len()).sum(),
    };
    2 * bytes as u64
}

/// Changes the label of a key.
pub(crate) async fn change(
    context: &RequestContext<'_>,
    pool: &str,
    key: &str,
    request: Request,
) -> HandlerResult {
    let pool = pool_name(pool)?;
    let body = body::read(context, request).await.and_then(ChangeKeyBody::label);
    let parsed = body.and_then(|label| Ok((label, key_ref(key)?)));
    let (label, key) = context.or_unknown_pool(&pool, parsed).await?;
    let view = context.execute(Call::set_label(pool.clone(), key, label)).await?;
    Ok(json_response(StatusCode::OK, &wire_key(&pool, *view)))
}

/// Shows a key without its value.
pub(crate) async fn show(context: &RequestContext<'_>, pool: &str, key: &str) -> HandlerResult {
    let pool = pool_name(pool)?;
    let key = context.or_unknown_pool(&pool, key_ref(key)).await?;
    let view = context.execute(Call::get_key(pool.clone(), key)).await?;
    Ok(json_response(StatusCode::OK, &wire_key(&pool, *view)))
}

/// Returns a key's value without leasing the key.
pub(crate) async fn reveal(
    context: &RequestContext<'_>,
    pool: &str,
    key: &str,
    request: Request,
) -> HandlerResult {
    let (pool, key) = key_only(context, pool, key, request).await?;
    let Revealed { id, value } = context.execute(Call::reveal(pool, key)).await?;
    let key = wire::Secret(value.reveal().into());
    Ok(json_response(StatusCode::OK, &wire::RevealedKey { id: id.to_string(), key }))
}

/// Deletes a key.
pub(crate) async fn delete(
    context: &RequestContext<'_>,
    pool: &str,
    key: &str,
    request: Request,
) -> HandlerResult {
    let (pool, key) = key_only(context, pool, key, request).await?;
    context.execute(Call::delete_key(pool, key)).await?;
    Ok(no_content())
}

/// Force-releases a key: ends its lease, rest or quarantine by the key id.
pub(crate) async fn force_release(
    context: &RequestContext<'_>,
    pool: &str,
    key: &str,
    request: Request,
) -> HandlerResult {
    let (pool, key) = key_only(context, pool, key, request).await?;
    let ForceReleased { released, .. } = context.execute(Call::force_release(pool, key)).await?;
    Ok(json_response(StatusCode::OK, &wire::KeyReleased { released }))
}

/// Quarantines a key: at once, or when its lease ends.
pub(crate) async fn quarantine(
    context: &RequestContext<'_>,
    pool: &str,
    key: &str,
    request: Request,
) -> HandlerResult {
    let pool = pool_name(pool)?;
    let body = body::read::<QuarantineBody>(context, request).await;
    let parsed = body.and_then(|body| Ok((body.into_options(), key_ref(key)?)));
    let (options, key) = context.or_unknown_pool(&pool, parsed).await?;
    let call = Call::quarantine_key(pool.clone(), key, options);
    let KeyQuarantined { key, .. } = context.execute(call).await?;
    Ok(json_response(StatusCode::OK, &wire_key(&pool, key)))
}

/// Puts a quarantined key back, or cancels its draining.
pub(crate) async fn end_quarantine(
    context: &RequestContext<'_>,
    pool: &str,
    key: &str,
    request: Request,
) -> HandlerResult {
    let (pool, key) = key_only(context, pool, key, request).await?;
    let view = context.execute(Call::end_quarantine(pool.clone(), key)).await?;
    Ok(json_response(StatusCode::OK, &wire_key(&pool, *view)))
}

/// Keeps one key alive.
pub(crate) async fn keep_alive(
    context: &RequestContext<'_>,
    pool: &str,
    key: &str,
    request: Request,
) -> HandlerResult {
    let (pool, key) = key_only(context, pool, key, request).await?;
    Ok(Operation::keep_alive(pool, key).run(context).await?.to_response())
}

/// Reads a request with a body whose only arguments are the pool and the key in its path.
async fn key_only(
    context: &RequestContext<'_>,
    pool: &str,
    key: &str,
    request: Request,
) -> Result<(PoolName, KeyRef), Problem> {
    let pool = pool_name(pool)?;
    let parsed = body::read(context, request).await.and_then(|NoFields| key_ref(key));
    let key = context.or_unknown_pool(&pool, parsed).await?;
    Ok((pool, key))
}

/// Keeps the given keys, or all keys of a pool, alive.
pub(crate) async fn keep_alive_many(
    context: &RequestContext<'_>,
    pool: &str,
    request: Request,
) -> HandlerResult {
    let pool = pool_name(pool)?;
    let body = body::read::<KeepAliveBody>(context, request).await;
    let targets = context.or_unknown_pool(&pool, body.and_then(KeepAliveBody::targets)).await?;
    let (kept, missing) = match targets {
        KeepAliveTargets::All => {
            let KeptAliveMany { kept, .. } = context.execute(Call::keep_alive_all(pool)).await?;
            (kept, Vec::new())
        }
        KeepAliveTargets::Keys(ids) => {
            // The answer can repeat every id of the request.
            let room = context.answer_room(ids.bytes())?;
            let (kept, missing) = keep_alive_listed(context, pool, ids).await?;
            let answer = json_response(StatusCode::OK, &wire::KeptAliveMany { kept, missing });
            return Ok(room.fill(answer));
        }
    };
    Ok(json_response(StatusCode::OK, &wire::KeptAliveMany { kept, missing }))
}

/// Keeps the listed keys alive, by calls of a bounded size: such a list is not a transaction.
/// Returns the number of keys and the ids without a key.
async fn keep_alive_listed(
    context: &RequestContext<'_>,
    pool: PoolName,
    Ids { mut keys, malformed: mut missing }: Ids,
) -> Result<(u64, Vec<String>), Problem> {
    if keys.len() <= KEEP_ALIVE_MAX {
        let call = Call::keep_alive_many(pool, keys);
        let KeptAliveMany { kept, missing: unknown } = context.execute(call).await?;
        missing.extend(unknown.iter().map(KeyId::to_string));
        return Ok((kept, missing));
    }
    // Each key counts once, in whichever parts of the list it is.
    let mut seen = HashSet::with_capacity(keys.len());
    keys.retain(|key| seen.insert(*key));
    let mut kept_count = 0;
    for (index, part) in keys.chunks(KEEP_ALIVE_MAX).enumerate() {
        let call = Call::keep_alive_many(pool.clone(), part.to_vec());
        // One permit is enough for all parts.
        let executed = if index == 0 {
            context.execute(call).await
        } else {
            context.execute_next(call).await.map_err(Problem::after_a_part)
        };
        let KeptAliveMany { kept, missing: unknown } = executed?;
        kept_count += kept;
        missing.extend(unknown.iter().map(KeyId::to_string));
    }
    Ok((kept_count, missing))
}

fn new_key(key: &NewKey) -> wire::NewKey {
    wire::NewKey {
        id: key.id.to_string(),
        key: wire::Secret(key.value.reveal().into()),
        state: wire::KeyState::Available,
        label: key.label.as_deref().map(Into::into),
        created_at: UnixMs(key.created_at_ms),
        expires_at: key.expires_at_ms.map(UnixMs),
    }
}

fn wire_key(pool: &PoolName, view: KeyView) -> wire::Key {
    wire::Key {
        id: view.id.to_string(),
        pool: pool.as_str().into(),
        state: wire_state(view.state),
        label: view.label.map(Into::into),
        created_at: UnixMs(view.created_at_ms),
        expires_at: view.expires_at_ms.map(UnixMs),
        rests_until: view.rests_until_ms.map(UnixMs),
        draining: view.draining,
        reason: view.reason.map(Into::into),
        keepalive: view.keepalive,
        lease: view.lease.map(wire_lease),
    }
}
