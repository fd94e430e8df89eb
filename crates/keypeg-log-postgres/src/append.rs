//! The append: one statement that compares the head of the log, moves it and inserts the frame.

use crate::connection::{Connection, MARK, not_replicated};
use crate::settings::{Durability, Settings};
use keypeg_log::{Append, Frame, LogError};
use tokio_postgres::Statement;
use tokio_postgres::types::ToSql;

/// A connection that appends to one shard, with its prepared statements.
pub(crate) struct Appender {
    connection: Connection,
    append: Statement,
    prove: Statement,
    head: Statement,
    is_replication_optional: bool,
}

impl Appender {
    /// Prepares the statements, and creates the head of the shard if it has none.
    pub(crate) async fn open(
        connection: Connection,
        settings: &Settings,
        shard: i32,
    ) -> Result<Self, LogError> {
        let schema = &settings.schema;
        // The list of standbys is read in the statement itself: it can be emptied while a session
        // is open, and from then on commits would wait for nothing. So is the mark of the session: in
        // another one, synchronous_commit may be off.
        let is_replicated = "($6::bool or current_setting('synchronous_standby_names') <> '')";
        let is_own = format!("current_setting('{MARK}', true)");
        let append = format!(
            "with head as (
               update {schema}.head set position = $2::bigint, last = $4::bytea
               where shard = $1::int and position = $2::bigint - 1 and last = $3::bytea
                 and {is_replicated} and {is_own} = $7::text returning 1)
             insert into {schema}.frame (shard, position, frame)
             select $1::int, $2::bigint, $5::bytea from head"
        );
        let prove = format!(
            "update {schema}.head set proofs = proofs + 1
             where shard = $1::int and position = $2::bigint and last = $3::bytea
               and ($4::bool or current_setting('synchronous_standby_names') <> '')
               and {is_own} = $5::text"
        );
        let head = format!("select position, last from {schema}.head where shard = $1");
        let create = format!(
            "insert into {schema}.head (shard, position, last)
             values ($1::int, 0, decode('00000000000000000000000000000000', 'hex'))
             on conflict do nothing"
        );
        let append = connection.prepare(&append).await?;
        let prove = connection.prepare(&prove).await?;
        let head = connection.prepare(&head).await?;
        connection.execute(&create, &[&shard]).await?;
        let is_replication_optional = settings.durability == Durability::Storage;
        Ok(Self { connection, append, prove, head, is_replication_optional })
    }

    pub(crate) fn is_usable(&self) -> bool {
        self.connection.is_usable()
    }

    /// Appends a frame.
    pub(crate) async fn append(&self, frame: &Frame) -> Append {
        match self.try_append(frame).await {
            Ok(outcome) => outcome,
            Err(error) => Append::Unknown(error),
        }
    }

    async fn try_append(&self, frame: &Frame) -> Result<Append, LogError> {
        let shard = i32::from(frame.shard().get());
        let position = i64::try_from(frame.position())
            .map_err(|_| LogError::Unsuitable("a position exceeds 63 bits".to_owned()))?;
        let (id, before) = (frame.id(), frame.after().id);
        let (id, before) = (id.bytes().as_slice(), before.bytes().as_slice());
        let bytes: &[u8] = frame.bytes();
        let optional = self.is_replication_optional;
        let mark = self.connection.mark();
        let parameters: [&(dyn ToSql + Sync); 7] =
            [&shard, &position, &before, &id, &bytes, &optional, &mark];
        if self.connection.execute(&self.append, &parameters).await? == 1 {
            return Ok(Append::Appended);
        }
        let row = self.connection.query_one(&self.head, &[&shard]).await?;
        let (found, last): (i64, &[u8]) = (row.get(0), row.get(1));
        if (found, last) == (position - 1, before) {
            // The head did not hold the append back: the session or the list of standbys did.
            self.connection.check_session().await?;
            return Err(not_replicated());
        }
        if (found, last) != (position, id) {
            return Ok(Append::Taken);
        }
        // The frame is visible, which proves nothing: it can be missing on the standby. Once this
        // commit is acknowledged, so is all that was written before it.
        let parameters: [&(dyn ToSql + Sync); 5] = [&shard, &position, &id, &optional, &mark];
        match self.connection.execute(&self.prove, &parameters).await? {
            1 => Ok(Append::Appended),
            _ => Err(LogError::Unavailable("the head of the log has changed meanwhile".to_owned())),
        }
    }
}
