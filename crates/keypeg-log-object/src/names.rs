//! The names of the objects below the prefix of an installation. Positions have 20 digits, so their
//! order is that of the names.

use keypeg_log::{FrameId, ServerName, Shard, SnapshotId};
use object_store::path::Path;

/// The names below a prefix.
#[derive(Clone, Debug)]
pub(crate) struct Names(Path);

impl Names {
    pub(crate) fn new(prefix: Path) -> Self {
        Self(prefix)
    }

    /// Returns the names of a probe, which share nothing with those of the installation.
    pub(crate) fn probe(&self, nonce: [u8; 16]) -> Self {
        Self(self.0.clone().join("probe").join(FrameId::new(nonce).to_string()))
    }

    /// Returns the prefix of all names.
    pub(crate) fn all(&self) -> &Path {
        &self.0
    }

    pub(crate) fn installation(&self) -> Path {
        self.0.clone().join("installation")
    }

    pub(crate) fn servers(&self) -> Path {
        self.0.clone().join("servers")
    }

    pub(crate) fn server(&self, name: &ServerName) -> Path {
        self.servers().join(name.as_str())
    }

    fn shard(&self, shard: Shard, kind: &str) -> Path {
        self.0.clone().join("shards").join(format!("{:05}", shard.get())).join(kind)
    }

    pub(crate) fn frames(&self, shard: Shard) -> Path {
        self.shard(shard, "frames")
    }

    pub(crate) fn frame(&self, shard: Shard, position: u64) -> Path {
        self.frames(shard).join(digits(position))
    }

    /// Marks of the positions at which a takeover frame can be.
    pub(crate) fn takeovers(&self, shard: Shard) -> Path {
        self.shard(shard, "takeovers")
    }

    pub(crate) fn takeover(&self, shard: Shard, position: u64) -> Path {
        self.takeovers(shard).join(digits(position))
    }

    /// The manifests of complete snapshots.
    pub(crate) fn snapshots(&self, shard: Shard) -> Path {
        self.shard(shard, "snapshots")
    }

    pub(crate) fn snapshot(&self, shard: Shard, position: u64) -> Path {
        self.snapshots(shard).join(digits(position))
    }

    pub(crate) fn parts(&self, shard: Shard) -> Path {
        self.shard(shard, "parts")
    }

    pub(crate) fn part(&self, id: SnapshotId, part: u32) -> Path {
        let parts = self.parts(id.shard).join(digits(id.at.position));
        parts.join(id.attempt.to_string()).join(format!("{part:010}"))
    }
}

fn digits(position: u64) -> String {
    format!("{position:020}")
}

/// Returns the position in a name directly below `prefix`, or in the first part of a longer one.
pub(crate) fn position(prefix: &Path, name: &Path) -> Option<u64> {
    let mut parts = name.prefix_match(prefix)?;
    let first = parts.next()?;
    let digits = first.as_ref();
    if digits.len() == 20 { digits.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keypeg_log::Tail;

    #[test]
    fn names_sort_by_position_and_give_it_back() {
        let (names, shard) = (Names::new(Path::from("a/b")), Shard::new(7));
        let frames = names.frames(shard);
        let mut last = String::new();
        for at in [0, 1, 9, 10, 99, 100, 1 << 40, u64::MAX] {
            let name = names.frame(shard, at);
            assert_eq!(position(&frames, &name), Some(at));
            assert!(name.as_ref() > last.as_str(), "{name} after {last}");
            last = name.to_string();
        }
        assert_eq!(last, "a/b/shards/00007/frames/18446744073709551615");
        let at = Tail { position: 5, id: FrameId::NONE };
        let part = names.part(SnapshotId { shard, at, attempt: FrameId::new([1; 16]) }, 3);
        assert_eq!(position(&names.parts(shard), &part), Some(5));
        assert_eq!(position(&frames, &frames.clone().join("5")), None, "not ours");
        assert_eq!(position(&frames, &part), None);
    }
}
