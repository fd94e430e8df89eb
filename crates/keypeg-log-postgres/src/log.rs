//! The shared log: connections, and each call as a task of the server's runtime.
//!
//! There is one connection for each shard that this server appends to, because a commit that waits
//! for its standby holds up everything behind it on its connection; one for large reads and
//! snapshots; and one for the rest.

use crate::append::Appender;
use crate::connection::{Connection, Facts};
use crate::schema;
use crate::settings::{Durability, Settings};
use crate::tables::Tables;
use crate::tls;
use bytes::Bytes;
use keypeg_log::{
    Append, Call, Completed, Frame, Guarantee, Heartbeat, LogError, ProbeReport, ServerName, Shard,
    SharedLog, Snapshot, SnapshotId, Tail, race,
};
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio_postgres_rustls::MakeRustlsConnect;

/// A shared log in PostgreSQL.
pub struct PostgresLog {
    runtime: Handle,
    inner: Arc<Inner>,
}

struct Inner {
    settings: Settings,
    tls: MakeRustlsConnect,
    /// The connections that append, by shard.
    appenders: StdMutex<HashMap<Shard, Arc<Mutex<Option<Appender>>>>>,
    control: Mutex<Option<Arc<Connection>>>,
    bulk: Mutex<Option<Arc<Connection>>>,
}

impl PostgresLog {
    /// Prepares a log. Connections are opened by the calls, which run on this runtime.
    /// [`SharedLog::probe`] creates the tables.
    pub fn new(settings: Settings, runtime: Handle) -> Result<Self, LogError> {
        let tls = tls::connector(&settings)?;
        let inner = Inner {
            settings,
            tls,
            appenders: StdMutex::default(),
            control: Mutex::default(),
            bulk: Mutex::default(),
        };
        Ok(Self { runtime, inner: Arc::new(inner) })
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
    async fn open(&self) -> Result<(Connection, Facts), LogError> {
        Connection::open(&self.settings, &self.tls).await
    }

    /// Returns the open connection of a place, or opens one.
    async fn shared(
        &self,
        place: &Mutex<Option<Arc<Connection>>>,
    ) -> Result<Arc<Connection>, LogError> {
        let mut place = place.lock().await;
        if let Some(connection) = place.as_ref().filter(|connection| connection.is_usable()) {
            return Ok(Arc::clone(connection));
        }
        let connection = Arc::new(self.open().await?.0);
        *place = Some(Arc::clone(&connection));
        Ok(connection)
    }

    fn tables<'a>(&'a self, connection: &'a Connection) -> Tables<'a> {
        Tables { connection, schema: &self.settings.schema }
    }

    async fn append(&self, frame: &Frame) -> Append {
        let place = {
            let mut appenders = self.appenders.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(appenders.entry(frame.shard()).or_default())
        };
        let mut place = place.lock().await;
        let appender = match place.take().filter(Appender::is_usable) {
            Some(appender) => appender,
            None => match self.open_appender(frame.shard()).await {
                Ok(appender) => appender,
                Err(error) => return Append::Unknown(error),
            },
        };
        let outcome = appender.append(frame).await;
        // What is not known ends the connection, and a server that lost the shard needs none.
        if outcome.is_appended() {
            *place = Some(appender);
        }
        outcome
    }

    async fn open_appender(&self, shard: Shard) -> Result<Appender, LogError> {
        let (connection, _) = self.open().await?;
        Appender::open(connection, &self.settings, i32::from(shard.get())).await
    }

    /// Refuses a pooler that gives each transaction another session: while another connection is in a
    /// transaction, at most one of the two has the session that it was given first.
    async fn refuse_pooler(&self, connection: &Connection) -> Result<(), LogError> {
        let (other, _) = self.open().await?;
        other.batch("begin").await?;
        other.check_session().await?;
        connection.check_session().await?;
        other.batch("rollback").await
    }

    /// Creates the tables, and returns what the server says about itself.
    async fn prepare(&self) -> Result<ProbeReport, LogError> {
        let (connection, facts) = self.open().await?;
        self.refuse_pooler(&connection).await?;
        schema::prepare(&connection, &self.settings.schema).await?;
        let mut warnings = Vec::new();
        if !facts.has_full_page_writes {
            let text = "full_page_writes is off: a crash can damage the tables, unless the file \
                        system writes pages atomically";
            warnings.push(text.to_owned());
        }
        let durability = match self.settings.durability {
            Durability::Replicated => format!("synchronous standbys {}", facts.standbys),
            Durability::Storage if facts.standbys.is_empty() => {
                "replicated storage (durability=storage)".to_owned()
            }
            Durability::Storage => {
                format!("replicated storage, synchronous standbys {}", facts.standbys)
            }
        };
        let store = format!("PostgreSQL {}, {durability}", facts.version);
        Ok(ProbeReport { store, warnings })
    }
}

impl SharedLog for PostgresLog {
    fn guarantee(&self) -> Guarantee {
        Guarantee::Chained
    }

    fn probe(&self, nonce: [u8; 16]) -> Call<'_, Result<ProbeReport, LogError>> {
        let prepare = self.run(|inner| async move { inner.prepare().await });
        Box::pin(async move {
            let report = prepare.await?;
            race(self, Shard::PROBE, nonce).await?;
            self.run(|inner| async move {
                let connection = inner.shared(&inner.control).await?;
                inner.tables(&connection).remove_frames(Shard::PROBE, u64::MAX).await
            })
            .await?;
            Ok(report)
        })
    }

    fn installation<'a>(&'a self, proposed: &'a [u8]) -> Call<'a, Result<Bytes, LogError>> {
        let proposed = proposed.to_vec();
        self.run(|inner| async move {
            let connection = inner.shared(&inner.control).await?;
            inner.tables(&connection).installation(&proposed).await
        })
    }

    fn append<'a>(&'a self, frame: &'a Frame) -> Call<'a, Append> {
        let frame = frame.clone();
        let call = self.run(|inner| async move { Ok(inner.append(&frame).await) });
        Box::pin(async move { call.await.unwrap_or_else(Append::Unknown) })
    }

    fn tail(&self, shard: Shard) -> Call<'_, Result<Tail, LogError>> {
        self.run(move |inner| async move {
            let connection = inner.shared(&inner.control).await?;
            inner.tables(&connection).tail(shard).await
        })
    }

    fn read(
        &self,
        shard: Shard,
        above: u64,
        bytes_max: usize,
    ) -> Call<'_, Result<Vec<Frame>, LogError>> {
        self.run(move |inner| async move {
            let connection = inner.shared(&inner.bulk).await?;
            inner.tables(&connection).read(shard, above, bytes_max).await
        })
    }

    fn put_part(
        &self,
        snapshot: SnapshotId,
        part: u32,
        bytes: Bytes,
    ) -> Call<'_, Result<(), LogError>> {
        self.run(move |inner| async move {
            Snapshot::check_part(part, bytes.len())?;
            let connection = inner.shared(&inner.bulk).await?;
            inner.tables(&connection).put_part(snapshot, part, &bytes).await
        })
    }

    fn complete(&self, snapshot: Snapshot) -> Call<'_, Result<Completed, LogError>> {
        self.run(move |inner| async move {
            let connection = inner.shared(&inner.control).await?;
            inner.tables(&connection).complete(snapshot).await
        })
    }

    fn snapshots(&self, shard: Shard) -> Call<'_, Result<Vec<Snapshot>, LogError>> {
        self.run(move |inner| async move {
            let connection = inner.shared(&inner.control).await?;
            inner.tables(&connection).snapshots(shard).await
        })
    }

    fn get_part(&self, snapshot: Snapshot, part: u32) -> Call<'_, Result<Bytes, LogError>> {
        self.run(move |inner| async move {
            let connection = inner.shared(&inner.bulk).await?;
            inner.tables(&connection).get_part(snapshot, part).await
        })
    }

    fn trim(&self, shard: Shard, through: u64) -> Call<'_, Result<(), LogError>> {
        self.run(move |inner| async move {
            let connection = inner.shared(&inner.bulk).await?;
            inner.tables(&connection).trim(shard, through).await
        })
    }

    fn beat<'a>(&'a self, heartbeat: &'a Heartbeat) -> Call<'a, Result<(), LogError>> {
        let heartbeat = heartbeat.clone();
        self.run(|inner| async move {
            let connection = inner.shared(&inner.control).await?;
            inner.tables(&connection).beat(&heartbeat).await
        })
    }

    fn heartbeats(&self) -> Call<'_, Result<Vec<Heartbeat>, LogError>> {
        self.run(|inner| async move {
            let connection = inner.shared(&inner.control).await?;
            inner.tables(&connection).heartbeats().await
        })
    }

    fn forget<'a>(&'a self, server: &'a ServerName) -> Call<'a, Result<(), LogError>> {
        let server = server.clone();
        self.run(|inner| async move {
            let connection = inner.shared(&inner.control).await?;
            inner.tables(&connection).forget(&server).await
        })
    }
}

/// Shows neither the user nor the password.
impl fmt::Debug for PostgresLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Settings { durability, schema, timeout, .. } = &self.inner.settings;
        f.debug_struct("PostgresLog")
            .field("durability", durability)
            .field("schema", schema)
            .field("timeout", timeout)
            .finish_non_exhaustive()
    }
}
