//! Refusals at admission, counted per caller, so that no caller without permission can fill the
//! audit log: the first refusal of a caller has its own line, and one line per minute sums up the
//! further ones.
//!
//! Each table has room for [`CALLERS_MAX`] callers, and one more line for all others. So the number
//! of lines per minute has a bound, whatever clients send. Time is an argument. Knows neither the
//! queue nor the file.

use super::line::Summary;
use crate::share::CallerId;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Callers with lines of their own: as many tokens, and as many networks.
const CALLERS_MAX: usize = 64;
/// The time that one summary covers.
const INTERVAL: Duration = Duration::from_mins(1);

/// An instant, and the wall clock at that instant.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) at: Instant,
    pub(crate) wall_ms: u64,
}

/// The refusals of the present interval.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    tokens: Table,
    networks: Table,
}

#[derive(Debug, Default)]
struct Table {
    callers: BTreeMap<CallerId, Counted>,
    /// The callers for which the table has no room.
    others: Option<Counted>,
}

/// The refusals of one caller that have no line of their own.
#[derive(Debug)]
struct Counted {
    since: Instant,
    codes: BTreeMap<&'static str, u64>,
    first_ms: u64,
    last_ms: u64,
}

impl Refusals {
    /// Counts a refusal; returns whether it is the first one of its caller, which has its own line
    /// and is not counted.
    pub(super) fn note(&mut self, caller: &CallerId, code: &'static str, now: Moment) -> bool {
        let table = match caller {
            CallerId::Token(_) => &mut self.tokens,
            CallerId::Network(_) => &mut self.networks,
        };
        if let Some(counted) = table.callers.get_mut(caller) {
            counted.add(code, now);
            return false;
        }
        if table.callers.len() < CALLERS_MAX {
            table.callers.insert(caller.clone(), Counted::new(now));
            return true;
        }
        table.others.get_or_insert_with(|| Counted::new(now)).add(code, now);
        false
    }

    /// Takes the summaries of the callers whose interval has passed. A caller without a further
    /// refusal in its interval is forgotten. O(callers).
    pub(super) fn take_due(&mut self, now: Moment) -> Vec<Summary> {
        self.take(now, |counted| now.at.saturating_duration_since(counted.since) >= INTERVAL)
    }

    /// Takes the summaries of all callers, before the log ends.
    pub(super) fn take_all(&mut self, now: Moment) -> Vec<Summary> {
        self.take(now, |_| true)
    }

    fn take(&mut self, now: Moment, is_due: impl Fn(&Counted) -> bool) -> Vec<Summary> {
        let mut summaries = Vec::new();
        for table in [&mut self.tokens, &mut self.networks] {
            table.callers.retain(|caller, counted| {
                if !is_due(counted) {
                    return true;
                }
                let summary = counted.take(Some(caller), now);
                let is_active = summary.is_some();
                summaries.extend(summary);
                is_active
            });
            if table.others.as_ref().is_some_and(&is_due) {
                let others = table.others.take();
                summaries.extend(others.and_then(|mut counted| counted.take(None, now)));
            }
        }
        summaries
    }
}

impl Counted {
    fn new(now: Moment) -> Self {
        Self { since: now.at, codes: BTreeMap::new(), first_ms: now.wall_ms, last_ms: now.wall_ms }
    }

    fn add(&mut self, code: &'static str, now: Moment) {
        if self.codes.is_empty() {
            self.first_ms = now.wall_ms;
        }
        self.last_ms = now.wall_ms;
        *self.codes.entry(code).or_default() += 1;
    }

    /// Returns the line about the counted refusals, and begins the next interval; `None` if there
    /// were none.
    fn take(&mut self, caller: Option<&CallerId>, now: Moment) -> Option<Summary> {
        self.since = now.at;
        let codes = std::mem::take(&mut self.codes);
        (!codes.is_empty()).then(|| Summary::new(caller, codes, (self.first_ms, self.last_ms)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use std::net::IpAddr;
    use std::sync::Arc;

    fn network(address: &str) -> CallerId {
        CallerId::of_address(Some(address.parse::<IpAddr>().unwrap()))
    }

    fn json(summaries: &[Summary]) -> Vec<serde_json::Value> {
        let of = |summary: &Summary| serde_json::to_value(summary).unwrap();
        summaries.iter().map(of).collect()
    }

    /// 190 000 requests without a token pushed every older line out of the log.
    #[test]
    fn further_refusals_of_a_caller_are_one_line_a_minute() {
        let start = clock::stopwatch();
        let after = |seconds: u64| Moment {
            at: start + Duration::from_secs(seconds),
            wall_ms: 1_000_000 + seconds * 1_000,
        };
        let (mut refusals, caller) = (Refusals::default(), network("192.0.2.1"));
        assert!(refusals.note(&caller, "unauthorized", after(0)), "the first one has its line");
        for n in 0..190_000 {
            let code = if n < 20 { "unauthorized" } else { "rate_limited" };
            assert!(!refusals.note(&caller, code, after(1 + n / 10_000)));
        }
        assert!(refusals.take_due(after(59)).is_empty());
        let [line] = &json(&refusals.take_due(after(60)))[..] else { panic!("one line") };
        assert_eq!((&line["count"], &line["address"]), (&190_000.into(), &"192.0.2.1".into()));
        assert_eq!(line["codes"], serde_json::json!({"unauthorized": 20, "rate_limited": 189_980}));
        assert_eq!(line["first_at"], "1970-01-01T00:16:41.000Z");
        assert_eq!(line["last_at"], "1970-01-01T00:16:59.000Z");
        // The caller continues: it has no line before the next minute has passed.
        assert!(!refusals.note(&caller, "unauthorized", after(61)));
        assert!(refusals.take_due(after(119)).is_empty());
        assert_eq!(json(&refusals.take_due(after(120)))[0]["count"], 1);
        // After a minute of silence it is forgotten, and its next refusal is a first one.
        assert!(refusals.take_due(after(180)).is_empty());
        assert!(refusals.note(&caller, "unauthorized", after(181)));
        assert!(refusals.take_all(after(182)).is_empty(), "each refusal is in one line");
    }

    #[test]
    fn a_network_of_ipv6_is_one_caller_and_a_token_another() {
        let now = Moment { at: clock::stopwatch(), wall_ms: 0 };
        let mut refusals = Refusals::default();
        let callers = ["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"].map(network);
        let first = callers.each_ref().map(|caller| refusals.note(caller, "unauthorized", now));
        assert_eq!(first, [true, false, true]);
        let token = CallerId::Token(Arc::from("ci"));
        assert_eq!([0, 1].map(|_| refusals.note(&token, "forbidden", now)), [true, false]);
        let lines = json(&refusals.take_all(now));
        let of = |line: &serde_json::Value| (line["token"].clone(), line["address"].clone());
        let all: Vec<_> = lines.iter().map(of).collect();
        assert_eq!(all, [("ci".into(), ().into()), (().into(), "2001:db8::/64".into())]);
    }

    /// A million networks, a token's refusals among them.
    #[test]
    fn the_number_of_lines_and_the_memory_have_a_bound() {
        let now = Moment { at: clock::stopwatch(), wall_ms: 0 };
        let mut refusals = Refusals::default();
        let count: u32 = 1_000_000;
        let firsts = (0..count)
            .filter(|n| {
                refusals.note(&CallerId::Network(u128::from(*n) << 64), "unauthorized", now)
            })
            .count();
        assert_eq!((firsts, refusals.networks.callers.len()), (CALLERS_MAX, CALLERS_MAX));
        assert!(refusals.note(&CallerId::Token(Arc::from("ci")), "forbidden", now));
        for n in 0..count {
            refusals.note(&CallerId::Network(u128::from(n) << 64), "unauthorized", now);
        }
        let lines = json(&refusals.take_all(now));
        assert_eq!(lines.len(), CALLERS_MAX + 1);
        let others: Vec<_> = lines.iter().filter(|line| line["others"] == true).collect();
        assert_eq!(others.len(), 1);
        assert_eq!(
            others[0]["count"].as_u64().unwrap(),
            2 * (u64::from(count) - CALLERS_MAX as u64)
        );
        let all: u64 = lines.iter().map(|line| line["count"].as_u64().unwrap()).sum();
        assert_eq!(all + firsts as u64, 2 * u64::from(count), "no refusal is lost");
    }
}
