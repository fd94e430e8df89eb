//! What a server says about itself in its heartbeat: where it is reached, and what it does with the
//! shards. A hint, like every heartbeat.

use keypeg_log::Shard;
use std::fmt;

/// Shards as a set: bit `n` is shard `n`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ShardSet(u128);

impl ShardSet {
    pub(super) fn contains(self, shard: Shard) -> bool {
        self.0 >> shard.get() & 1 == 1
    }

    /// Returns the numbers of its shards.
    pub(super) fn numbers(self) -> impl Iterator<Item = usize> {
        (0..128).filter(move |number| self.0 >> number & 1 == 1)
    }

    pub(super) fn insert(&mut self, shard: Shard) {
        self.0 |= 1 << shard.get();
    }
}

/// What a heartbeat says, as text in its address: `URL start=HEX tokens=1 owned=HEX ready=HEX pinned=HEX move=N>NAME`.
/// A part that is left out is empty, and an unknown one is ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Presence {
    /// The URL at which other servers reach it.
    pub(super) address: String,
    /// The shards that it serves.
    pub(super) owned: ShardSet,
    /// The shards that it serves, or has read to the end of their logs.
    pub(super) ready: ShardSet,
    /// The shards that were moved to it by hand.
    pub(super) pinned: ShardSet,
    /// The shard that it hands over to another server by hand.
    pub(super) moved: Option<(Shard, String)>,
    /// Of two processes of one name, the later one has the greater number.
    pub(super) start: u64,
    /// Whether it requires access tokens; `None` for an older server, which does not say so.
    pub(super) has_tokens: Option<bool>,
}

impl Presence {
    pub(super) fn read(text: &str) -> Self {
        let mut parts = text.split(' ');
        let address = parts.next().unwrap_or_default().to_owned();
        let mut presence = Self { address, ..Self::default() };
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            let set = ShardSet(u128::from_str_radix(value, 16).unwrap_or(0));
            match name {
                "owned" => presence.owned = set,
                "ready" => presence.ready = set,
                "pinned" => presence.pinned = set,
                "move" => presence.moved = read_move(value),
                "tokens" => presence.has_tokens = Some(value == "1"),
                "start" => presence.start = u64::from_str_radix(value, 16).unwrap_or(0),
                _ => {}
            }
        }
        presence
    }
}

fn read_move(text: &str) -> Option<(Shard, String)> {
    let (shard, server) = text.split_once('>')?;
    Some((Shard::new(shard.parse().ok()?), server.to_owned()))
}

impl fmt::Display for Presence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, owned, ready, pinned, moved, start, has_tokens } = self;
        f.write_str(address)?;
        if *start != 0 {
            write!(f, " start={start:x}")?;
        }
        if let Some(has_tokens) = has_tokens {
            write!(f, " tokens={}", u8::from(*has_tokens))?;
        }
        for (name, set) in [("owned", owned), ("ready", ready), ("pinned", pinned)] {
            if set.0 != 0 {
                write!(f, " {name}={:x}", set.0)?;
            }
        }
        moved.as_ref().map_or(Ok(()), |(shard, server)| write!(f, " move={shard}>{server}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keypeg_log::{Heartbeat, ServerName};

    #[test]
    fn a_presence_reads_back_and_fits_into_a_heartbeat() {
        let all = ShardSet(u128::MAX);
        let name = ServerName::new(&"n".repeat(64)).unwrap();
        let greatest = Presence {
            address: "a".repeat(60),
            owned: all,
            ready: all,
            pinned: ShardSet::default(),
            moved: Some((Shard::new(127), name.to_string())),
            start: u64::MAX,
            has_tokens: Some(true),
        };
        let small = Presence { address: "http://a:1".into(), ..Presence::default() };
        let open = Presence { has_tokens: Some(false), ..small.clone() };
        for presence in [greatest, small, open] {
            let text = presence.to_string();
            assert_eq!(Presence::read(&text), presence);
            Heartbeat::new(name.clone(), &text, 1).unwrap();
        }
        let later = Presence::read("http://a:1 owned=8 newer=1 ready=zz move=x>y");
        assert!(later.owned.contains(Shard::new(3)) && !later.owned.contains(Shard::new(2)));
        assert_eq!((later.ready, later.moved), (ShardSet::default(), None));
    }
}
