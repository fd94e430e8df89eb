//! Leases over HTTP: acquire, release, renew.

use super::body::{Fields, Known, REST};
use super::error::{PREFERENCE_APPLIED, Problem};
use super::idempotency::{self, Once};
use super::prefer;
use super::{Answered, Asking, Request, SHAPES, json, no_content, pool_name};
use hyper::StatusCode;
use hyper::header::HeaderValue;
use keypeg_client as wire;
use keypeg_client::{Seconds, UnixMs};
use keypeg_engine::core::{KeyId, LeaseId, LeaseView, PoolName, ReleaseOptions, Secret};
use keypeg_engine::{Call, Reply, WAIT_MAX_MS};
use serde::{Serialize, Serializer};

pub(super) const ACQUIRE: Known = &["ttl_seconds", "wait_seconds", "holder"];
pub(super) const RELEASE: Known = &["rest_seconds", "quarantine", "reason"];
pub(super) const RENEW: Known = &["ttl_seconds"];
const TTL: &str = "0.001..lease_ttl_seconds of the pool";
const WAIT: &str = "0..300";
const HOLDER: &str = "at most 128 printable characters";
const HOLDER_MAX: usize = 128;
const REASON: &str = "at most 256 printable characters";
const REASON_MAX: usize = 256;

pub(super) async fn acquire(app: &Asking<'_>, pool: &str, request: Request) -> Answered {
    let pool = pool_name(pool)?;
    let (once, wanted) = app.judged(&pool, wanted(request).await).await?;
    let wait = wanted.wait;
    let reply = app.ask(idempotency::asked(once, wanted.call(pool))).await;
    let granted = reply.map_err(|problem| problem.of_grant().applying(wait.applied()))?;
    let mut response = json(StatusCode::CREATED, &Granted::of(granted).told());
    if let Some(applied) = wait.applied() {
        response.headers_mut().insert(PREFERENCE_APPLIED, applied);
    }
    Ok(response)
}

/// A key that was lent.
pub(super) struct Granted {
    pool: PoolName,
    lease: Box<LeaseView>,
    value: Secret,
    waited_ms: u64,
}

/// What an acquire asks for.
pub(super) struct Wanted {
    ttl_ms: Option<u64>,
    holder: Option<Box<str>>,
    wait: Wait,
}

async fn wanted(request: Request) -> Result<(Option<Once>, Wanted), Problem> {
    let key = idempotency::key(request.headers())?;
    let preferred = prefer::wait_s(request.headers());
    let fields = Fields::read(request, ACQUIRE).await?;
    let once = Once::of(key, &fields);
    let wanted = Wanted::of(fields)?;
    let wait = match (wanted.wait, preferred) {
        (Wait::None, Some(seconds)) => Wait::Preferred { seconds },
        (wait, _) => wait,
    };
    Ok((once, Wanted { wait, ..wanted }))
}

impl Wanted {
    /// Reads what the body asks for.
    pub(super) fn of(mut fields: Fields) -> Result<Self, Problem> {
        let ttl_ms = fields.seconds("ttl_seconds", TTL)?;
        let wait_ms = fields.seconds("wait_seconds", WAIT)?;
        if wait_ms.is_some_and(|ms| ms > WAIT_MAX_MS) {
            return Err(Problem::out_of_range("wait_seconds", WAIT));
        }
        let holder = fields.text("holder", HOLDER)?;
        if holder.as_deref().is_some_and(|holder| !is_printable(holder, HOLDER_MAX)) {
            return Err(Problem::out_of_range("holder", HOLDER));
        }
        // An empty name is none: a journal cannot tell the two apart.
        let holder = holder.filter(|holder| !holder.is_empty()).map(String::into_boxed_str);
        let wait = wait_ms.map_or(Wait::None, |ms| Wait::Asked { ms });
        Ok(Self { ttl_ms, holder, wait })
    }

    pub(super) fn call(self, pool: PoolName) -> Call {
        let Self { ttl_ms, holder, wait } = self;
        Call::Acquire { pool, ttl_ms, holder, wait_ms: wait.ms() }
    }
}

/// How long to wait for a key.
#[derive(Clone, Copy)]
enum Wait {
    /// Nobody says.
    None,
    /// The body says so.
    Asked { ms: u64 },
    /// The header does: whoever sent it is told what became of it.
    Preferred { seconds: u64 },
}

impl Wait {
    /// A preference that is longer than waits are is met as far as they go.
    fn ms(self) -> u64 {
        match self {
            Self::None => 0,
            Self::Asked { ms } => ms,
            Self::Preferred { seconds } => seconds.saturating_mul(1_000).min(WAIT_MAX_MS),
        }
    }

    fn applied(self) -> Option<HeaderValue> {
        let Self::Preferred { .. } = self else { return None };
        let applied = format!("wait={}", self.ms() / 1_000);
        Some(HeaderValue::try_from(applied).expect("invariant: letters and digits"))
    }
}

fn is_printable(text: &str, max: usize) -> bool {
    text.chars().count() <= max && !text.chars().any(char::is_control)
}

pub(super) async fn release(
    app: &Asking<'_>,
    pool: &str,
    lease: &str,
    request: Request,
) -> Answered {
    let pool = pool_name(pool)?;
    let read = Fields::read(request, RELEASE).await.and_then(|fields| {
        let verdict = verdict(fields)?;
        Ok((lease_id(lease)?, verdict))
    });
    let (lease, verdict) = app.judged(&pool, read).await?;
    let Reply::Done = app.ask(Call::Release { pool, lease, verdict }).await? else {
        unreachable!("{SHAPES}")
    };
    app.note_lease(lease.token());
    Ok(no_content())
}

/// Reads what a release says of the key.
pub(super) fn verdict(mut fields: Fields) -> Result<ReleaseOptions, Problem> {
    let rest_ms = fields.seconds("rest_seconds", REST)?;
    let quarantine = fields.boolean("quarantine")?.unwrap_or(false);
    let reason = fields.text("reason", REASON)?;
    if reason.as_deref().is_some_and(|reason| !is_printable(reason, REASON_MAX)) {
        return Err(Problem::out_of_range("reason", REASON));
    }
    Ok(ReleaseOptions { rest_ms, quarantine, reason: reason.map(String::into_boxed_str) })
}

pub(super) async fn renew(app: &Asking<'_>, pool: &str, lease: &str, request: Request) -> Answered {
    let pool = pool_name(pool)?;
    let wanted = Fields::read(request, RENEW).await.and_then(|fields| {
        let ttl_ms = longer(fields)?;
        Ok((ttl_ms, lease_id(lease)?))
    });
    let (ttl_ms, lease) = app.judged(&pool, wanted).await?;
    let reply = app.ask(Call::Renew { pool: pool.clone(), lease, ttl_ms }).await?;
    Ok(json(StatusCode::OK, &renewed(&pool, reply)))
}

/// Reads how long a renewal wants its lease to last.
pub(super) fn longer(mut fields: Fields) -> Result<Option<u64>, Problem> {
    fields.seconds("ttl_seconds", TTL)
}

pub(super) fn lease_id(text: &str) -> Result<LeaseId, Problem> {
    LeaseId::parse(text).ok_or_else(|| Problem::lease_ended(None))
}

impl Granted {
    pub(super) fn of(reply: Reply) -> Self {
        let Reply::Granted { pool, lease, value, waited_ms, .. } = reply else {
            unreachable!("{SHAPES}")
        };
        Self { pool, lease, value, waited_ms }
    }

    /// What takes it back, where nobody received it.
    pub(super) fn taken_back(&self) -> Call {
        Call::RevokeUndelivered { pool: self.pool.clone(), lease: self.lease.id }
    }

    pub(super) fn told(&self) -> wire::Grant<Word<'_>> {
        let Self { pool, lease, value, waited_ms } = self;
        wire::Grant {
            id: Word::Lease(lease.id),
            pool: Word::Text(pool.as_str()),
            key_id: Word::Key(lease.key_id),
            key: wire::Secret(Word::Text(value.reveal())),
            fencing_token: lease.token,
            holder: lease.holder.as_deref().map(Word::Text),
            granted_at: UnixMs(lease.granted_at_ms),
            waited_seconds: Seconds::from_ms(*waited_ms),
            expires_at: UnixMs(lease.expires_at_ms),
            expires_in_seconds: Seconds::from_ms(lease.expires_in_ms),
            key_expires_at: lease.key_expires_at_ms.map(UnixMs),
        }
    }
}

/// What is text on the wire, and need not be made so before.
pub(super) enum Word<'a> {
    Lease(LeaseId),
    Key(KeyId),
    Text(&'a str),
}

impl Serialize for Word<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Lease(id) => serializer.collect_str(id),
            Self::Key(id) => serializer.collect_str(id),
            Self::Text(text) => serializer.serialize_str(text),
        }
    }
}

pub(super) fn renewed(pool: &PoolName, reply: Reply) -> wire::Lease {
    let Reply::Renewed(lease) = reply else { unreachable!("{SHAPES}") };
    wire::Lease {
        id: lease.id.to_string(),
        pool: pool.as_str().into(),
        key_id: lease.key_id.to_string(),
        fencing_token: lease.token,
        holder: lease.holder.map(Into::into),
        granted_at: UnixMs(lease.granted_at_ms),
        expires_at: UnixMs(lease.expires_at_ms),
        expires_in_seconds: Seconds::from_ms(lease.expires_in_ms),
        key_expires_at: lease.key_expires_at_ms.map(UnixMs),
    }
}
