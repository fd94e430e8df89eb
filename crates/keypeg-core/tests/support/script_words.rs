//! The words of scripts: parses the arguments of calls and formats their answers.

use super::FIRST_TOKEN;
use keypeg_core::{
    BodyDigest, Borrower, IdempotencyKey, ImportOptions, KeyState, KeyView, NewKey, Now,
    OutOfRange, PolicyPatch, Refusal, ReleaseOptions,
};

pub(super) fn life_text(now: Now, expires_at_ms: Option<u64>) -> String {
    expires_at_ms.map_or("never".into(), |at| {
        at.checked_sub(now.wall_us / 1_000).map_or("past".into(), duration)
    })
}

pub(super) fn form_text(key: &NewKey) -> String {
    let text = key.value.reveal();
    let prefix: String = text.chars().take_while(|c| *c != '_').collect();
    let prefix = if prefix.len() == text.len() { "" } else { &prefix };
    format!("length={} prefix={prefix}", text.len())
}

pub(super) fn view_text(now: Now, view: &KeyView) -> String {
    let life = life_text(now, view.expires_at_ms);
    let reason = view.reason.as_deref();
    match (view.state, &view.lease, view.rests_until_ms) {
        (KeyState::Available, None, None) if reason.is_none() => format!("available life={life}"),
        (KeyState::Leased, Some(lease), None) if reason.is_none() => format!(
            "leased by={} token={} ttl={} life={life}",
            lease.holder.as_deref().unwrap_or("-"),
            lease.token - FIRST_TOKEN + 1,
            duration(lease.expires_in_ms),
        ),
        (KeyState::Resting, None, Some(until)) => {
            let left = duration(until - now.wall_us / 1_000);
            format!("resting left={left} life={life} why={}", reason.unwrap_or("-"))
        }
        (KeyState::Quarantined, None, None) => {
            format!("quarantined life={life} why={}", reason.unwrap_or("-"))
        }
        other => panic!("a contradictory view: {other:?}"),
    }
}

pub(super) fn refused_text(now: Now, refusal: &Refusal) -> String {
    match refusal {
        Refusal::UnknownPool => "unknown_pool".into(),
        Refusal::DefaultPool => "default_pool".into(),
        Refusal::TooManyPools { max } => format!("too_many_pools max={max}"),
        Refusal::Invalid(OutOfRange { field, .. }) => format!("invalid {field}"),
        Refusal::PoolFull { max, of_server } => {
            format!("full max={max} of={}", if *of_server { "server" } else { "pool" })
        }
        Refusal::KeyExists { index } => format!("key_exists at={index}"),
        Refusal::NoKey { cause, counts, next_hold_end_in_ms } => format!(
            "no_key {cause:?} available={} leased={} resting={} quarantined={} next={}",
            counts.available,
            counts.leased,
            counts.resting,
            counts.quarantined,
            next_hold_end_in_ms.map_or("never".into(), duration),
        ),
        Refusal::WaitQueueFull { max } => format!("queue_full max={max}"),
        Refusal::TooManyLeases { max } => format!("too_many_leases max={max}"),
        Refusal::UnknownKey => "unknown_key".into(),
        Refusal::BadCursor => "bad_cursor".into(),
        Refusal::IdempotencyMismatch => "mismatch".into(),
        Refusal::KeysGone => "keys_gone".into(),
        Refusal::TakenOver => "taken_over".into(),
        Refusal::TooManyAnswers { .. } => "too_many_answers".into(),
        Refusal::LeaseEnded { cause: Some(cause) } => format!("lease_ended {cause:?}"),
        Refusal::LeaseEnded { cause: None } => "lease_ended unknown".into(),
        Refusal::MaxHoldReached { expires_at_ms } => {
            format!("max_hold_reached ends={}", duration(expires_at_ms - now.wall_us / 1_000))
        }
        Refusal::Settling => "settling".into(),
    }
}

/// Parses `as=NAME max=N`: the borrower and its limit of leases.
pub(super) fn borrower_of(args: &[&str]) -> Borrower {
    let arg = |name| args.iter().find_map(|arg| arg.strip_prefix(name));
    let max = arg("max=").map(|max| max.parse().expect("a number"));
    arg("as=").map_or_else(Borrower::default, |name| Borrower::new(name, max))
}

/// Parses `once=K body=B caller=C`: an Idempotency-Key, a body and a caller.
pub(super) fn idempotency_key_of<'a>(args: &[&'a str]) -> Option<IdempotencyKey<'a>> {
    let arg = |name| args.iter().find_map(|arg| arg.strip_prefix(name));
    let body = BodyDigest::of(arg("body=").unwrap_or_default().as_bytes());
    Some(IdempotencyKey { caller: arg("caller=").unwrap_or_default(), key: arg("once=")?, body })
}

/// Returns the arguments that do not belong to an Idempotency-Key.
pub(super) fn without_idempotency_key<'a>(args: &[&'a str]) -> Vec<&'a str> {
    let belongs =
        |arg: &str| ["once=", "body=", "caller="].iter().any(|name| arg.starts_with(name));
    args.iter().copied().filter(|arg| !belongs(arg)).collect()
}

/// Returns the values of an import, and its options.
pub(super) fn import_options_of<'a>(args: &[&'a str]) -> (Vec<&'a str>, ImportOptions) {
    let (no_keepalive, allow_retired) = ("keepalive=false", "allow_retired");
    let options = ImportOptions {
        keepalive: !args.contains(&no_keepalive),
        allow_retired: args.contains(&allow_retired),
    };
    let is_value = |arg: &&str| ![no_keepalive, allow_retired].contains(arg);
    (args.iter().copied().filter(is_value).collect(), options)
}

/// Formats milliseconds as seconds: `60s`, `0.001s`.
pub(super) fn duration(ms: u64) -> String {
    let text = format!("{}.{:03}", ms / 1_000, ms % 1_000);
    format!("{}s", text.trim_end_matches('0').trim_end_matches('.'))
}

/// Parses `60s`, `59.999s`, `59.999999s`, `1us`.
pub(super) fn micros(text: &str) -> u64 {
    if let Some(us) = text.strip_suffix("us") {
        return us.parse().expect("microseconds");
    }
    let seconds = text.strip_suffix('s').expect("a duration in seconds");
    let (whole, part) = seconds.split_once('.').unwrap_or((seconds, ""));
    let part: u64 = format!("{part:0<6}").parse().expect("at most six decimals");
    whole.parse::<u64>().expect("seconds") * 1_000_000 + part
}

pub(super) fn millis(text: &str) -> u64 {
    micros(text).div_ceil(1_000)
}

pub(super) fn ttl_of(args: &[&str]) -> Option<u64> {
    args.iter().find_map(|arg| arg.strip_prefix("ttl=")).map(millis)
}

pub(super) fn release_options_of(args: &[&str]) -> ReleaseOptions {
    ReleaseOptions {
        rest_ms: args.iter().find_map(|arg| arg.strip_prefix("rest=")).map(millis),
        quarantine: args.contains(&"quarantine"),
        reason: args.iter().find_map(|arg| arg.strip_prefix("reason=")).map(Into::into),
    }
}

pub(super) fn patch_of(args: &[&str]) -> PolicyPatch {
    let mut patch = PolicyPatch::default();
    let or_null = |text: &str| (text != "null").then(|| millis(text));
    for arg in args {
        let (field, value) = arg.split_once('=').expect("field=value");
        match field {
            "lease_ttl" => patch.lease_ttl_ms = Some(millis(value)),
            "max_hold" => patch.max_hold_ms = Some(or_null(value)),
            "keepalive" => patch.keepalive_ttl_ms = Some(or_null(value)),
            "rest" => patch.rest_ms = Some(millis(value)),
            "key_length" => patch.key_length = Some(value.parse().expect("a number")),
            "prefix" => patch.key_prefix = Some(value.into()),
            "max_keys" => {
                let max = (value != "null").then(|| value.parse().expect("a number"));
                patch.max_keys = Some(max);
            }
            _ => panic!("no such field: {field}"),
        }
    }
    patch
}
