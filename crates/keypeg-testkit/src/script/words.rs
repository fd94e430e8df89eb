//! The words of scripts: parses the arguments of calls and formats their answers.
//!
//! Knows neither the pools nor a store: both runners of scripts use these words.

use keypeg_core::{
    BodyDigest, Borrower, BorrowerId, IdempotencyKey, ImportOptions, KeyState, KeyView, NewKey,
    NewLabels, OutOfRange, PolicyPatch, QuarantineOptions, Refusal, ReleaseOptions,
};

/// Formats when a key is purged, as the time left.
pub fn life_text(now_ms: u64, expires_at_ms: Option<u64>) -> String {
    expires_at_ms
        .map_or("never".into(), |at| at.checked_sub(now_ms).map_or("past".into(), duration))
}

/// Formats the length and the prefix of a new key.
pub fn form_text(key: &NewKey) -> String {
    let text = key.value.reveal();
    let prefix: String = text.chars().take_while(|c| *c != '_').collect();
    let prefix = if prefix.len() == text.len() { "" } else { &prefix };
    format!("length={} prefix={prefix}", text.len())
}

/// Formats a key as it is shown; `token_number` is the number of a token in the script.
pub fn view_text(now_ms: u64, view: &KeyView, token_number: impl Fn(u64) -> String) -> String {
    let label = label_text(view.label.as_deref());
    let life = life_text(now_ms, view.expires_at_ms);
    let reason = view.reason.as_deref();
    let text = match (view.state, &view.lease, view.rests_until_ms) {
        (KeyState::Available, None, None) if reason.is_none() => format!("available life={life}"),
        (KeyState::Leased, Some(lease), None) if reason.is_none() || view.draining => {
            let draining = if view.draining { reason.unwrap_or("-") } else { "no" };
            format!(
                "leased by={} token={} ttl={} life={life} draining={draining}",
                lease.holder.as_deref().unwrap_or("-"),
                token_number(lease.token),
                duration(lease.expires_in_ms),
            )
        }
        (KeyState::Resting, None, Some(until)) => {
            let left = duration(until - now_ms);
            format!("resting left={left} life={life} why={}", reason.unwrap_or("-"))
        }
        (KeyState::Quarantined, None, None) => {
            format!("quarantined life={life} why={}", reason.unwrap_or("-"))
        }
        other => panic!("a contradictory view: {other:?}"),
    };
    assert!(!view.draining || view.state == KeyState::Leased, "a contradictory view: {view:?}");
    text + &label
}

/// Formats the label of a key, as the last fact of an answer.
pub fn label_text(label: Option<&str>) -> String {
    format!(" label={}", label.unwrap_or("-"))
}

/// Formats a refusal.
pub fn refused_text(now_ms: u64, refusal: &Refusal) -> String {
    match refusal {
        Refusal::UnknownPool => "unknown_pool".into(),
        Refusal::DefaultPool => "default_pool".into(),
        Refusal::TooManyPools { max } => format!("too_many_pools max={max}"),
        Refusal::Invalid(OutOfRange { field }) => format!("invalid {}", field.name()),
        Refusal::PoolFull { max, of_server } => {
            format!("full max={max} of={}", if *of_server { "server" } else { "pool" })
        }
        Refusal::KeyMemoryFull { .. } => "key_memory_full".into(),
        Refusal::MemoryFull { .. } => "memory_full".into(),
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
            format!("max_hold_reached ends={}", duration(expires_at_ms - now_ms))
        }
        Refusal::StorageFull => "storage_full".into(),
        Refusal::Settling => "settling".into(),
    }
}

/// Parses `as=NAME max=N`: the borrower and its limit of leases.
pub fn borrower_of(args: &[&str]) -> Borrower {
    let name = args.iter().find_map(|arg| arg.strip_prefix("as="));
    name.map_or_else(Borrower::default, |name| Borrower::new(name, borrower_limit_of(args)))
}

/// Parses `max=N`: a borrower's limit of leases.
pub fn borrower_limit_of(args: &[&str]) -> Option<u32> {
    let max = args.iter().find_map(|arg| arg.strip_prefix("max="));
    max.map(|max| max.parse().expect("a number"))
}

/// Parses `free why=TEXT`: when a quarantine begins, and its reason.
pub fn quarantine_options_of(args: &[&str]) -> QuarantineOptions {
    let reason = args.iter().find_map(|arg| arg.strip_prefix("why=")).map(Into::into);
    QuarantineOptions { when_free: args.contains(&"free"), reason }
}

/// Parses `once=K body=B caller=C`: an Idempotency-Key, a body and a caller.
pub fn idempotency_key_of<'a>(args: &[&'a str]) -> Option<IdempotencyKey<'a>> {
    let arg = |name| args.iter().find_map(|arg| arg.strip_prefix(name));
    let body = BodyDigest::of(arg("body=").unwrap_or_default().as_bytes());
    let caller = arg("caller=").unwrap_or_default();
    let key = arg("once=")?;
    Some(IdempotencyKey { caller, key, body, borrower: BorrowerId::NONE, network: 0 })
}

/// Parses `label=x`: the label of new keys, or of a key. `label=` is none.
pub fn label_of<'a>(args: &[&'a str]) -> Option<&'a str> {
    args.iter().find_map(|arg| arg.strip_prefix("label="))
}

/// Parses `label=x`: the label of all new keys.
pub fn labels_of(args: &[&str]) -> NewLabels {
    label_of(args).map_or(NewLabels::None, |label| NewLabels::All(label.into()))
}

/// Returns the arguments that name keys: all but those of an Idempotency-Key, and a label.
pub fn without_idempotency_key<'a>(args: &[&'a str]) -> Vec<&'a str> {
    let belongs = |arg: &str| {
        ["once=", "body=", "caller=", "label="].iter().any(|name| arg.starts_with(name))
    };
    args.iter().copied().filter(|arg| !belongs(arg)).collect()
}

/// Returns the values of an import, and its options.
pub fn import_options_of<'a>(args: &[&'a str]) -> (Vec<&'a str>, ImportOptions) {
    let (no_keepalive, allow_retired) = ("keepalive=false", "allow_retired");
    let options = ImportOptions {
        keepalive: !args.contains(&no_keepalive),
        allow_retired: args.contains(&allow_retired),
    };
    let is_value = |arg: &&str| ![no_keepalive, allow_retired].contains(arg);
    (args.iter().copied().filter(is_value).collect(), options)
}

/// Formats milliseconds as seconds: `60s`, `0.001s`.
pub fn duration(ms: u64) -> String {
    let text = format!("{}.{:03}", ms / 1_000, ms % 1_000);
    format!("{}s", text.trim_end_matches('0').trim_end_matches('.'))
}

/// Parses `60s`, `59.999s`, `59.999999s`, `1us`.
pub fn micros(text: &str) -> u64 {
    if let Some(us) = text.strip_suffix("us") {
        return us.parse().expect("microseconds");
    }
    let seconds = text.strip_suffix('s').expect("a duration in seconds");
    let (whole, part) = seconds.split_once('.').unwrap_or((seconds, ""));
    let part: u64 = format!("{part:0<6}").parse().expect("at most six decimals");
    whole.parse::<u64>().expect("seconds") * 1_000_000 + part
}

/// Parses a duration to milliseconds, rounded up.
pub fn millis(text: &str) -> u64 {
    micros(text).div_ceil(1_000)
}

/// Parses `ttl=60s`.
pub fn ttl_of(args: &[&str]) -> Option<u64> {
    args.iter().find_map(|arg| arg.strip_prefix("ttl=")).map(millis)
}

/// Parses `rest=5s quarantine reason=401`.
pub fn release_options_of(args: &[&str]) -> ReleaseOptions {
    ReleaseOptions {
        rest_ms: args.iter().find_map(|arg| arg.strip_prefix("rest=")).map(millis),
        quarantine: args.contains(&"quarantine"),
        reason: args.iter().find_map(|arg| arg.strip_prefix("reason=")).map(Into::into),
    }
}

/// Parses the fields of a policy: `lease_ttl=60s max_hold=null`.
pub fn patch_of(args: &[&str]) -> PolicyPatch {
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
            "draining" => patch.draining = Some(value.parse().expect("true or false")),
            _ => panic!("no such field: {field}"),
        }
    }
    patch
}
