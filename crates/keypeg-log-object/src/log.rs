//! The shared log: each call as a task of the server's runtime.

use crate::frames::Frames;
use crate::names::Names;
use crate::objects::{Created, Objects};
use crate::settings::Settings;
use crate::snapshots::Snapshots;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::future::try_join_all;
use keypeg_log::{
    Append, Call, Completed, Frame, Guarantee, Heartbeat, LogError, ProbeReport, ServerName, Shard,
    SharedLog, Snapshot, SnapshotId, Tail, race,
};
use std::fmt;
use std::sync::Arc;
use tokio::runtime::Handle;

/// A shared log in an object store.
pub struct ObjectLog {
    runtime: Handle,
    inner: Arc<Inner>,
}

struct Inner {
    objects: Objects,
    names: Names,
    settings: Settings,
}

impl ObjectLog {
    /// Prepares a log. Its calls run on this runtime.
    pub fn new(settings: Settings, runtime: Handle) -> Self {
        let names = Names::new(settings.prefix.clone());
        Self::with_names(settings, names, runtime)
    }

    fn with_names(settings: Settings, names: Names, runtime: Handle) -> Self {
        let Settings { store, timeout, is_sorted, .. } = &settings;
        let (limit, is_sorted) = (*timeout, *is_sorted);
        let objects = Objects { store: Arc::clone(store), limit, is_sorted };
        Self { runtime, inner: Arc::new(Inner { objects, names, settings }) }
    }

    /// Runs a call as a task, so that a caller that goes away does not end it in the middle.
    fn run<T, F>(&self, call: impl FnOnce(Arc<Inner>) -> F) -> Call<'static, Result<T, LogError>>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, LogError>> + Send + 'static,
    {
        let (runtime, call) = (self.runtime.clone(), call(Arc::clone(&self.inner)));
        Box::pin(async move {
            match runtime.spawn(call).await {
                Ok(result) => result,
                Err(error) => Err(LogError::Unavailable(format!("the call did not end: {error}"))),
            }
        })
    }
}

impl Inner {
    fn frames(&self) -> Frames<'_> {
        Frames { objects: &self.objects, names: &self.names }
    }

    fn snapshots(&self) -> Snapshots<'_> {
        Snapshots { objects: &self.objects, names: &self.names }
    }

    async fn installation(&self, proposed: Bytes) -> Result<Bytes, LogError> {
        let name = self.names.installation();
        if let Some(found) = self.objects.get(&name).await? {
            return Ok(found);
        }
        if let Created::New = self.objects.create(&name, proposed.clone()).await? {
            return Ok(proposed);
        }
        let text = "the store refused an object, and has none of its name";
        let found = self.objects.get(&name).await?;
        found.ok_or_else(|| LogError::Unavailable(text.to_owned()))
    }

    async fn beat(&self, heartbeat: Heartbeat) -> Result<(), LogError> {
        let mut bytes = BytesMut::new();
        bytes.put_u64_le(heartbeat.count);
        bytes.put_slice(heartbeat.address.as_bytes());
        self.objects.put(&self.names.server(&heartbeat.server), bytes.freeze()).await
    }

    async fn heartbeats(&self) -> Result<Vec<Heartbeat>, LogError> {
        let listed = self.objects.list(&self.names.servers(), None, usize::MAX).await?;
        let read = listed.iter().map(|found| async move {
            let bytes = self.objects.get(&found.location).await?;
            Ok(bytes.and_then(|bytes| decode(found.location.filename()?, &bytes)))
        });
        Ok(try_join_all(read).await?.into_iter().flatten().collect())
    }
}

/// Decodes a heartbeat; `None` for an object that is none.
fn decode(name: &str, bytes: &[u8]) -> Option<Heartbeat> {
    let (count, address) = bytes.split_first_chunk()?;
    let address = std::str::from_utf8(address).ok()?;
    Heartbeat::new(ServerName::new(name).ok()?, address, u64::from_le_bytes(*count)).ok()
}

impl SharedLog for ObjectLog {
    fn guarantee(&self) -> Guarantee {
        Guarantee::Created
    }

    fn probe(&self, nonce: [u8; 16]) -> Call<'_, Result<ProbeReport, LogError>> {
        let settings = self.inner.settings.clone();
        let names = self.inner.names.probe(nonce);
        let trial = Self::with_names(settings, names, self.runtime.clone());
        Box::pin(async move {
            let raced = race(&trial, Shard::PROBE, nonce).await;
            let removed = trial.run(|inner| async move {
                let all = inner.objects.list(inner.names.all(), None, usize::MAX).await?;
                let names = all.into_iter().map(|found| found.location);
                inner.objects.remove(names.collect()).await
            });
            let removed = removed.await;
            raced?;
            removed?;
            let Settings { name, warnings, .. } = &self.inner.settings;
            Ok(ProbeReport { store: format!("object store {name}"), warnings: warnings.clone() })
        })
    }

    fn installation<'a>(&'a self, proposed: &'a [u8]) -> Call<'a, Result<Bytes, LogError>> {
        let proposed = Bytes::copy_from_slice(proposed);
        self.run(|inner| async move { inner.installation(proposed).await })
    }

    fn append<'a>(&'a self, frame: &'a Frame) -> Call<'a, Append> {
        let frame = frame.clone();
        let call = self.run(|inner| async move { Ok(inner.frames().append(&frame).await) });
        Box::pin(async move { call.await.unwrap_or_else(Append::Unknown) })
    }

    fn tail(&self, shard: Shard) -> Call<'_, Result<Tail, LogError>> {
        self.run(move |inner| async move { inner.frames().tail(shard).await })
    }

    fn read(
        &self,
        shard: Shard,
        above: u64,
        bytes_max: usize,
    ) -> Call<'_, Result<Vec<Frame>, LogError>> {
        self.run(move |inner| async move { inner.frames().read(shard, above, bytes_max).await })
    }

    fn put_part(
        &self,
        snapshot: SnapshotId,
        part: u32,
        bytes: Bytes,
    ) -> Call<'_, Result<(), LogError>> {
        self.run(
            move |inner| async move { inner.snapshots().put_part(snapshot, part, bytes).await },
        )
    }

    fn complete(&self, snapshot: Snapshot) -> Call<'_, Result<Completed, LogError>> {
        self.run(move |inner| async move { inner.snapshots().complete(snapshot).await })
    }

    fn snapshots(&self, shard: Shard) -> Call<'_, Result<Vec<Snapshot>, LogError>> {
        self.run(move |inner| async move { inner.snapshots().list(shard).await })
    }

    fn get_part(&self, snapshot: Snapshot, part: u32) -> Call<'_, Result<Bytes, LogError>> {
        self.run(move |inner| async move { inner.snapshots().get_part(snapshot, part).await })
    }

    fn trim(&self, shard: Shard, through: u64) -> Call<'_, Result<(), LogError>> {
        self.run(move |inner| async move {
            inner.frames().trim(shard, through).await?;
            inner.snapshots().trim(shard, through).await
        })
    }

    fn beat<'a>(&'a self, heartbeat: &'a Heartbeat) -> Call<'a, Result<(), LogError>> {
        let heartbeat = heartbeat.clone();
        self.run(|inner| async move { inner.beat(heartbeat).await })
    }

    fn heartbeats(&self) -> Call<'_, Result<Vec<Heartbeat>, LogError>> {
        self.run(|inner| async move { inner.heartbeats().await })
    }

    fn forget<'a>(&'a self, server: &'a ServerName) -> Call<'a, Result<(), LogError>> {
        let name = self.inner.names.server(server);
        self.run(|inner| async move { inner.objects.remove(vec![name]).await })
    }
}

impl fmt::Debug for ObjectLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectLog").field("settings", &self.inner.settings).finish_non_exhaustive()
    }
}
