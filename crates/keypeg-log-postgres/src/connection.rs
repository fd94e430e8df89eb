//! One connection to PostgreSQL, with the settings that the log depends on.
//!
//! A task drives the connection and keeps the first notice of the server. After a notice, an error or
//! a timeout the connection is closed, and nothing that ran on it at that time counts. Closing is
//! all that ends a call: no cancel request is ever sent.

use crate::fault::{POOLED, fault};
use crate::hosts;
use crate::settings::{Durability, Settings};
use futures_util::{StreamExt as _, stream};
use keypeg_log::LogError;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::types::ToSql;
use tokio_postgres::{AsyncMessage, Client, Error, Row, Statement, ToStatement};
use tokio_postgres_rustls::MakeRustlsConnect;

/// An open connection.
pub(crate) struct Connection {
    client: Client,
    /// What the server said without being asked, once the session is set up.
    notice: Arc<Mutex<Option<String>>>,
    driver: JoinHandle<()>,
    limit: Duration,
    /// The value of [`MARK`] in the session that has the settings.
    mark: String,
}

/// A setting of the session that only this connection has. A pooler that gives each transaction
/// another session loses it, and with it `synchronous_commit`.
pub(crate) const MARK: &str = "keypeg.session";

/// What a server says about its replication.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) version: String,
    pub(crate) standbys: String,
    pub(crate) has_full_page_writes: bool,
}

impl Connection {
    /// Connects to a primary whose commits outlive a machine, as the settings say.
    pub(crate) async fn open(
        settings: &Settings,
        tls: &MakeRustlsConnect,
    ) -> Result<(Self, Facts), LogError> {
        let limit = settings.timeout;
        let (client, mut connection) = hosts::connect(&settings.hosts, tls, limit).await?;
        let notice = Arc::new(Mutex::new(None));
        let kept = Arc::clone(&notice);
        let driver = tokio::spawn(async move {
            let mut messages = stream::poll_fn(move |context| connection.poll_message(context));
            while let Some(Ok(message)) = messages.next().await {
                if let AsyncMessage::Notice(notice) = message {
                    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                    kept.get_or_insert_with(|| {
                        format!("{}: {}", notice.severity(), notice.message())
                    });
                }
            }
        });
        let mut connection = Self { client, notice, driver, limit, mark: String::new() };
        let facts = connection.set_up(settings).await?;
        // A notice about the session itself, such as one about a collation, means no append.
        *connection.notice.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok((connection, facts))
    }

    /// Sets what the log depends on, and refuses a server that could lose what it acknowledges.
    async fn set_up(&mut self, settings: &Settings) -> Result<Facts, LogError> {
        // lock_timeout ends a wait for the row of another append before anything is written, so a
        // server that hangs does not collect a session for each attempt. Nothing else may end a
        // statement: the wait for a standby comes after the commit.
        let session = format!(
            "set synchronous_commit = on; set statement_timeout = 0; \
             set idle_in_transaction_session_timeout = 0; set lock_timeout = '{}s'; \
             set default_transaction_isolation = 'read committed'; \
             set client_min_messages = warning",
            settings.timeout.as_secs()
        );
        self.batch(&session).await?;
        let mark = format!(
            "select set_config('{MARK}', md5(random()::text || clock_timestamp()::text), false)"
        );
        self.mark = self.query_one(&mark, &[]).await?.get(0);
        let facts = "select pg_is_in_recovery(), current_setting('fsync') = 'on', \
                     current_setting('server_version'), \
                     current_setting('synchronous_standby_names'), \
                     current_setting('full_page_writes') = 'on'";
        let row = self.query_one(facts, &[]).await?;
        if row.get(0) {
            return Err(LogError::Unavailable("the server is a standby".to_owned()));
        }
        if !row.get::<_, bool>(1) {
            let text = "fsync is off: a crash of PostgreSQL loses commits. Set fsync = on";
            return Err(LogError::Unsuitable(text.to_owned()));
        }
        let standbys: String = row.get(3);
        if standbys.is_empty() && settings.durability == Durability::Replicated {
            return Err(not_replicated());
        }
        Ok(Facts { version: row.get(2), standbys, has_full_page_writes: row.get(4) })
    }

    /// Returns the value of [`MARK`] that each append compares.
    pub(crate) fn mark(&self) -> &str {
        &self.mark
    }

    /// Checks that this is still the session that was set up.
    pub(crate) async fn check_session(&self) -> Result<(), LogError> {
        let sql = format!("select coalesce(current_setting('{MARK}', true), '')");
        let found: String = self.query_one(&sql, &[]).await?.get(0);
        if found == self.mark { Ok(()) } else { Err(LogError::Unsuitable(POOLED.to_owned())) }
    }

    /// Prepares a statement for many calls.
    pub(crate) async fn prepare(&self, sql: &str) -> Result<Statement, LogError> {
        self.bounded(self.client.prepare(sql)).await
    }

    /// Runs statements without parameters.
    pub(crate) async fn batch(&self, sql: &str) -> Result<(), LogError> {
        self.bounded(self.client.batch_execute(sql)).await
    }

    /// Runs a statement that changes rows, and returns their number.
    pub(crate) async fn execute<S: ?Sized + ToStatement>(
        &self,
        statement: &S,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, LogError> {
        self.bounded(self.client.execute(statement, parameters)).await
    }

    /// Returns the rows of a query.
    pub(crate) async fn query<S: ?Sized + ToStatement>(
        &self,
        statement: &S,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, LogError> {
        self.bounded(self.client.query(statement, parameters)).await
    }

    /// Returns the only row of a query.
    pub(crate) async fn query_one<S: ?Sized + ToStatement>(
        &self,
        statement: &S,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Row, LogError> {
        self.bounded(self.client.query_one(statement, parameters)).await
    }

    /// Returns the row of a query, if there is one.
    pub(crate) async fn query_opt<S: ?Sized + ToStatement>(
        &self,
        statement: &S,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Option<Row>, LogError> {
        self.bounded(self.client.query_opt(statement, parameters)).await
    }

    /// Runs a call of this connection within the time limit. Fails if the server has sent a notice.
    async fn bounded<T>(
        &self,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, LogError> {
        let Ok(result) = timeout(self.limit, call).await else {
            self.driver.abort();
            let text = format!("no answer within {:?}; the connection is closed", self.limit);
            return Err(LogError::Unavailable(text));
        };
        let result = result.map_err(|error| fault(&error));
        let notice = self.notice.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match notice {
            // For example: the wait for the standby was cancelled, and the commit is reported as
            // done.
            Some(notice) => {
                self.driver.abort();
                Err(LogError::Unavailable(format!("the server sent a notice: {notice}")))
            }
            None => result,
        }
    }

    /// Returns whether another call can use the connection.
    pub(crate) fn is_usable(&self) -> bool {
        let has_notice = self.notice.lock().unwrap_or_else(PoisonError::into_inner).is_some();
        !has_notice && !self.driver.is_finished() && !self.client.is_closed()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// The error of a primary without synchronous standbys.
pub(crate) fn not_replicated() -> LogError {
    LogError::Unsuitable(
        "synchronous_standby_names is empty, so PostgreSQL acknowledges what only one machine has. \
         Configure a synchronous standby, or add durability=storage to the URL if the storage \
         itself is replicated"
            .to_owned(),
    )
}
