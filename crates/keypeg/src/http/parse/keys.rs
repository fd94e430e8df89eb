//! The bodies of the key routes: adding keys, and keeping keys alive.
//!
//! A request sets one of two fields; the combination is checked here, each field by `members.rs`.

use super::body;
use super::idempotency;
use super::members::{BodyFields, Ids, Member, OrNull};
use super::query::Query;
use crate::http::admit::RequestContext;
use crate::http::error::Problem;
use crate::http::message::Request;
use keypeg_client as wire;
use keypeg_core::{ImportOptions, NewLabels, QuarantineOptions, Secret};
use keypeg_fields::{
    ALL, ALLOW_RETIRED, COUNT, Field, IDS, KEEPALIVE, KEY, LABEL, LABELS, NEW_LABEL, REASON,
    VALUES, VALUES_BODY_MAX, WHEN,
};
use keypeg_store::Idempotency;

/// The body of a request that adds keys.
#[derive(Debug, Default)]
pub(crate) struct AddKeysBody {
    count: Option<u64>,
    values: Option<Vec<Secret>>,
    keepalive: Option<bool>,
    allow_retired: Option<bool>,
    label: Option<Box<str>>,
    labels: Option<Vec<Box<str>>>,
}

impl BodyFields for AddKeysBody {
    const MEMBERS: &'static [Member<Self>] = &[
        Member::Integer(&COUNT, |body| &mut body.count),
        Member::Values(&VALUES, |body| &mut body.values),
        Member::Flag(&KEEPALIVE, |body| &mut body.keepalive),
        Member::Flag(&ALLOW_RETIRED, |body| &mut body.allow_retired),
        Member::Text(&LABEL, |body| &mut body.label),
        Member::Texts(&LABELS, |body| &mut body.labels),
    ];
    const BYTES_MAX: usize = VALUES_BODY_MAX;
}

impl AddKeysBody {
    /// Returns the options of an import, which no other request may have.
    fn import_options(&self) -> Result<ImportOptions, Problem> {
        let options = [(&KEEPALIVE, self.keepalive), (&ALLOW_RETIRED, self.allow_retired)];
        let given = options.iter().find(|(_, flag)| flag.is_some());
        if let (None, Some((field, _))) = (&self.values, given) {
            return Err(Problem::out_of_range(field.name, "left out unless values is given"));
        }
        let ImportOptions { keepalive, allow_retired } = ImportOptions::default();
        Ok(ImportOptions {
            keepalive: self.keepalive.unwrap_or(keepalive),
            allow_retired: self.allow_retired.unwrap_or(allow_retired),
        })
    }

    /// Takes the labels of `count` new keys.
    fn take_labels(&mut self, count: usize) -> Result<NewLabels, Problem> {
        match (self.label.take(), self.labels.take()) {
            (None, None) => Ok(NewLabels::None),
            (Some(label), None) => Ok(NewLabels::All(label)),
            (Some(_), Some(_)) => {
                Err(Problem::out_of_range(LABEL.name, "left out when labels is given"))
            }
            (None, Some(labels)) if labels.len() == count => {
                Ok(NewLabels::Each(labels.into_iter().map(Some).collect()))
            }
            (None, Some(_)) => {
                let allowed = format!("one label for each new key, {count} here");
                Err(Problem::out_of_range(LABELS.name, &allowed))
            }
        }
    }
}

/// The body of a request that changes a key.
#[derive(Debug, Default)]
pub(crate) struct ChangeKeyBody {
    label: OrNull<Box<str>>,
}

impl BodyFields for ChangeKeyBody {
    const MEMBERS: &'static [Member<Self>] =
        &[Member::TextOrNull(&NEW_LABEL, |body| &mut body.label)];
}

impl ChangeKeyBody {
    /// Returns the new label.
    pub(crate) fn label(self) -> Result<Option<Box<str>>, Problem> {
        self.label.ok_or_else(|| Problem::not_allowed(Field::Text(&NEW_LABEL)))
    }
}

/// The body of a request that quarantines a key.
#[derive(Debug, Default)]
pub(crate) struct QuarantineBody {
    when: Option<usize>,
    reason: Option<Box<str>>,
}

impl BodyFields for QuarantineBody {
    const MEMBERS: &'static [Member<Self>] = &[
        Member::Word(&WHEN, |body| &mut body.when),
        Member::Text(&REASON, |body| &mut body.reason),
    ];
}

impl QuarantineBody {
    /// Returns the options of the quarantine.
    pub(crate) fn into_options(self) -> QuarantineOptions {
        let Self { when, reason } = self;
        let when_free = when.is_some_and(|index| WHEN.words[index] == "free");
        QuarantineOptions { when_free, reason }
    }
}

/// The keys that a request adds.
pub(crate) enum KeysToAdd {
    Generated(u32, NewLabels),
    Imported(Vec<Secret>, ImportOptions, NewLabels),
}

/// Reads a request that adds keys.
pub(crate) async fn read_add(
    context: &RequestContext<'_>,
    request: Request,
) -> Result<(Option<Idempotency>, KeysToAdd), Problem> {
    let key = idempotency::header(request.headers())?;
    let mut body: AddKeysBody = body::read(context, request).await?;
    let key = idempotency::with_body(key, &mut body);
    let options = body.import_options()?;
    let new = match (body.count, body.values.take()) {
        (None, Some(values)) => {
            let labels = body.take_labels(values.len())?;
            KeysToAdd::Imported(values, options, labels)
        }
        (Some(_), Some(_)) => {
            return Err(Problem::out_of_range(COUNT.name, "left out when values is given"));
        }
        (count, None) => {
            let count = u32::try_from(count.unwrap_or(1));
            let count = count.expect("invariant: the range of the field fits");
            KeysToAdd::Generated(count, body.take_labels(count as usize)?)
        }
    };
    Ok((key, new))
}

/// The body of a request that keeps keys alive.
#[derive(Debug, Default)]
pub(crate) struct KeepAliveBody {
    ids: Option<Ids>,
    all: Option<bool>,
}

impl BodyFields for KeepAliveBody {
    const MEMBERS: &'static [Member<Self>] =
        &[Member::Ids(&IDS, |body| &mut body.ids), Member::Flag(&ALL, |body| &mut body.all)];
}

/// The keys that one keep-alive request names.
pub(crate) enum KeepAliveTargets {
    All,
    Keys(Ids),
}

impl KeepAliveBody {
    /// Returns the keys to keep alive.
    pub(crate) fn targets(self) -> Result<KeepAliveTargets, Problem> {
        match (self.ids, self.all) {
            (Some(ids), None) => Ok(KeepAliveTargets::Keys(ids)),
            (None, Some(all)) if ALL.allows(all) => Ok(KeepAliveTargets::All),
            (None, Some(_)) => Err(Problem::not_allowed(Field::Flag(&ALL))),
            (Some(_), Some(_)) => {
                Err(Problem::out_of_range(ALL.name, "left out when ids is given"))
            }
            (None, None) => Err(Problem::out_of_range(IDS.name, "given, unless all is true")),
        }
    }
}

/// The body of a request that verifies a key.
#[derive(Debug, Default)]
pub(crate) struct VerifyBody {
    key: Option<Secret>,
}

impl BodyFields for VerifyBody {
    const MEMBERS: &'static [Member<Self>] = &[Member::Value(&KEY, |body| &mut body.key)];
}

impl VerifyBody {
    /// Returns the value to verify.
    pub(crate) fn value(self) -> Result<Secret, Problem> {
        self.key.ok_or_else(|| Problem::not_allowed(Field::Value(&KEY)))
    }
}

/// The states in which a verified key is active.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ActiveStates([bool; wire::KeyState::ALL.len()]);

impl Default for ActiveStates {
    /// Leased keys only.
    fn default() -> Self {
        Self(wire::KeyState::ALL.map(|state| state == wire::KeyState::Leased))
    }
}

impl ActiveStates {
    /// Reads the parameter `states`: states, separated by commas.
    pub(crate) fn read(query: Option<&str>) -> Result<Self, Problem> {
        let query = Query::read(query, &["states"])?;
        let Some(list) = query.get("states") else { return Ok(Self::default()) };
        let mut states = Self([false; wire::KeyState::ALL.len()]);
        for word in list.split(',') {
            let index = wire::KeyState::ALL.iter().position(|state| state.as_str() == word);
            let Some(index) = index else {
                let all = wire::KeyState::ALL.map(wire::KeyState::as_str).join(", ");
                return Err(Problem::out_of_range(
                    "states",
                    &format!("a list, by commas, of {all}"),
                ));
            };
            states.0[index] = true;
        }
        Ok(states)
    }

    /// Returns whether a key in this state is active.
    pub(crate) fn contain(self, state: wire::KeyState) -> bool {
        wire::KeyState::ALL.iter().zip(self.0).any(|(listed, active)| active && *listed == state)
    }
}
