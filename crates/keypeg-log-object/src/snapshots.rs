//! Snapshots as objects: parts below the id of their attempt, and a manifest that is created last.

use crate::names::{Names, position};
use crate::objects::{Created, Objects};
use bytes::Bytes;
use futures_util::future::try_join_all;
use keypeg_log::{Completed, LogError, Shard, Snapshot, SnapshotId};

/// The snapshots of an installation.
pub(crate) struct Snapshots<'a> {
    pub(crate) objects: &'a Objects,
    pub(crate) names: &'a Names,
}

impl Snapshots<'_> {
    pub(crate) async fn put_part(
        &self,
        id: SnapshotId,
        part: u32,
        bytes: Bytes,
    ) -> Result<(), LogError> {
        Snapshot::check_part(part, bytes.len())?;
        self.objects.put(&self.names.part(id, part), bytes).await
    }

    pub(crate) async fn complete(&self, snapshot: Snapshot) -> Result<Completed, LogError> {
        let SnapshotId { shard, at, attempt } = snapshot.id;
        let name = self.names.snapshot(shard, at.position);
        let manifest = Bytes::copy_from_slice(&snapshot.manifest());
        if let Created::New = self.objects.create(&name, manifest).await? {
            return Ok(Completed::Created);
        }
        let Some(found) = self.objects.get(&name).await? else {
            let text = "the store refused a manifest, and has none of its position";
            return Err(LogError::Unavailable(text.to_owned()));
        };
        let found = Snapshot::decode(shard, at.position, &found)?;
        let is_own = found.id.attempt == attempt;
        Ok(if is_own { Completed::Created } else { Completed::Exists })
    }

    pub(crate) async fn list(&self, shard: Shard) -> Result<Vec<Snapshot>, LogError> {
        let prefix = self.names.snapshots(shard);
        let listed = self.objects.list(&prefix, None, usize::MAX).await?;
        let read = listed.iter().filter_map(|found| {
            let at = position(&prefix, &found.location)?;
            Some(async move {
                let manifest = self.objects.get(&found.location).await?;
                manifest.map(|manifest| Snapshot::decode(shard, at, &manifest)).transpose()
            })
        });
        // One that a trim removed meanwhile is left out.
        Ok(try_join_all(read).await?.into_iter().flatten().collect())
    }

    pub(crate) async fn get_part(&self, snapshot: Snapshot, part: u32) -> Result<Bytes, LogError> {
        let found = self.objects.get(&self.names.part(snapshot.id, part)).await?;
        let SnapshotId { shard, at, .. } = snapshot.id;
        found.ok_or(LogError::Gone { shard, position: at.position })
    }

    /// Removes the snapshots below a position, and the parts of attempts below it. The manifests
    /// are removed first: a listed snapshot has its parts.
    pub(crate) async fn trim(&self, shard: Shard, below: u64) -> Result<(), LogError> {
        for prefix in [self.names.snapshots(shard), self.names.parts(shard)] {
            let listed = self.objects.list(&prefix, None, usize::MAX).await?;
            let removed = listed
                .into_iter()
                .filter(|found| position(&prefix, &found.location).is_some_and(|at| at < below))
                .map(|found| found.location);
            self.objects.remove(removed.collect()).await?;
        }
        Ok(())
    }
}
