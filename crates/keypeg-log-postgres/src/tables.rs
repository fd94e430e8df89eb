//! The statements about everything but appends: reads, snapshots, trims, the installation,
//! heartbeats.

use crate::connection::Connection;
use bytes::Bytes;
use keypeg_log::{
    Completed, Frame, FrameId, Heartbeat, LogError, ServerName, Shard, Snapshot, SnapshotId, Tail,
};

/// The frames that one statement returns or removes.
const SLICE: i64 = 1000;
/// The parts that one statement removes: of up to 8 MiB each.
const PART_SLICE: i64 = 32;

/// A connection with the schema of the tables.
pub(crate) struct Tables<'a> {
    pub(crate) connection: &'a Connection,
    pub(crate) schema: &'a str,
}

impl Tables<'_> {
    pub(crate) async fn installation(&self, proposed: &[u8]) -> Result<Bytes, LogError> {
        // Always a write: the acknowledgement proves that what it returns is replicated.
        let sql = format!(
            "update {}.meta set installation = coalesce(installation, $1) returning installation",
            self.schema
        );
        let row = self.connection.query_one(&sql, &[&proposed]).await?;
        Ok(Bytes::from(row.get::<_, Vec<u8>>(0)))
    }

    pub(crate) async fn tail(&self, shard: Shard) -> Result<Tail, LogError> {
        let sql = format!("select position, last from {}.head where shard = $1", self.schema);
        let row = self.connection.query_opt(&sql, &[&number(shard)]).await?;
        let Some(row) = row else { return Ok(Tail::EMPTY) };
        let position = position(row.get(0));
        let last = row.get::<_, &[u8]>(1).try_into();
        let what = "the id of the last frame does not have 16 bytes";
        let id = last.map_err(|_| LogError::Damaged { shard, position, what })?;
        Ok(Tail { position, id: FrameId::new(id) })
    }

    pub(crate) async fn read(
        &self,
        shard: Shard,
        above: u64,
        bytes_max: usize,
    ) -> Result<Vec<Frame>, LogError> {
        // The head is read first: a frame that it counts and that is not there afterwards is a hole,
        // not an append that came between.
        let end = self.tail(shard).await?.position;
        let sql = format!(
            "select position, frame from (
               select position, frame, sum(octet_length(frame)) over (order by position) as total
               from {}.frame where shard = $1 and position > $2 order by position limit {SLICE}
             ) page where total <= $3::bigint or position = $2::bigint + 1 order by position",
            self.schema
        );
        let (lowest, max) = (signed(above), i64::try_from(bytes_max).unwrap_or(i64::MAX));
        let rows = self.connection.query(&sql, &[&number(shard), &lowest, &max]).await?;
        let (mut frames, mut missing) = (Vec::with_capacity(rows.len()), above + 1);
        for row in &rows {
            let found = position(row.get(0));
            if found != missing {
                break;
            }
            missing = found + 1;
            frames.push(Frame::decode(shard, found, row.get::<_, Vec<u8>>(1).into())?);
        }
        if frames.is_empty() && end > above {
            let found = rows.first().map_or(end, |row| position(row.get(0)));
            return Err(LogError::Hole { shard, missing, found });
        }
        Ok(frames)
    }

    pub(crate) async fn put_part(
        &self,
        id: SnapshotId,
        part: u32,
        bytes: &[u8],
    ) -> Result<(), LogError> {
        let sql = format!(
            "insert into {}.part (shard, position, attempt, part, bytes)
             values ($1, $2, $3, $4, $5) on conflict do nothing",
            self.schema
        );
        let part = part_number(part)?;
        let (shard, position) = (number(id.shard), signed(id.at.position));
        let attempt = id.attempt.bytes().as_slice();
        self.connection.execute(&sql, &[&shard, &position, &attempt, &part, &bytes]).await.map(drop)
    }

    pub(crate) async fn complete(&self, snapshot: Snapshot) -> Result<Completed, LogError> {
        let sql = format!(
            "insert into {0}.snapshot (shard, position, manifest) values ($1, $2, $3)
             on conflict (shard, position) do update set manifest = {0}.snapshot.manifest
             returning manifest",
            self.schema
        );
        let SnapshotId { shard, at, attempt } = snapshot.id;
        let manifest = snapshot.manifest();
        let (number, at) = (number(shard), at.position);
        let row =
            self.connection.query_one(&sql, &[&number, &signed(at), &manifest.as_slice()]).await?;
        let found = Snapshot::decode(shard, at, row.get(0))?;
        let is_own = found.id.attempt == attempt;
        Ok(if is_own { Completed::Created } else { Completed::Exists })
    }

    pub(crate) async fn snapshots(&self, shard: Shard) -> Result<Vec<Snapshot>, LogError> {
        let sql = format!(
            "select position, manifest from {}.snapshot where shard = $1 order by position",
            self.schema
        );
        let rows = self.connection.query(&sql, &[&number(shard)]).await?;
        rows.iter().map(|row| Snapshot::decode(shard, position(row.get(0)), row.get(1))).collect()
    }

    pub(crate) async fn get_part(&self, snapshot: Snapshot, part: u32) -> Result<Bytes, LogError> {
        let sql = format!(
            "select bytes from {}.part
             where shard = $1 and position = $2 and attempt = $3 and part = $4",
            self.schema
        );
        let SnapshotId { shard, at: Tail { position, .. }, attempt } = snapshot.id;
        let attempt = attempt.bytes().as_slice();
        let part = part_number(part)?;
        let row = self
            .connection
            .query_opt(&sql, &[&number(shard), &signed(position), &attempt, &part])
            .await?;
        let row = row.ok_or(LogError::Gone { shard, position })?;
        Ok(Bytes::from(row.get::<_, Vec<u8>>(0)))
    }

    /// Removes in slices, each a transaction of its own, so that no lock and no statement lasts.
    pub(crate) async fn trim(&self, shard: Shard, through: u64) -> Result<(), LogError> {
        let newest = self.snapshots(shard).await?.last().map_or(0, |it| it.id.at.position);
        if newest < through {
            return Err(LogError::NotInSnapshot { shard, through, newest });
        }
        self.remove_frames(shard, through).await?;
        // The manifest first: a reader finds no listed snapshot without its parts for long.
        let manifests =
            format!("delete from {}.snapshot where shard = $1 and position < $2", self.schema);
        let parts = format!(
            "delete from {0}.part where shard = $1 and position < $2 and ctid = any(array(
               select ctid from {0}.part where shard = $1 and position < $2 limit {PART_SLICE}))",
            self.schema
        );
        for sql in [manifests, parts] {
            loop {
                if self.connection.execute(&sql, &[&number(shard), &signed(through)]).await? == 0 {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Removes the frames at and below a position, oldest first.
    pub(crate) async fn remove_frames(&self, shard: Shard, through: u64) -> Result<(), LogError> {
        let sql = format!(
            "delete from {0}.frame where shard = $1 and position <= $2 and position <
               (select min(position) from {0}.frame where shard = $1) + {SLICE}",
            self.schema
        );
        loop {
            if self.connection.execute(&sql, &[&number(shard), &signed(through)]).await? == 0 {
                return Ok(());
            }
        }
    }

    pub(crate) async fn beat(&self, heartbeat: &Heartbeat) -> Result<(), LogError> {
        let Heartbeat { server, address, count } = heartbeat;
        let count = signed(*count);
        let schema = self.schema;
        let beat = format!(
            "insert into {schema}.server (name, address, count) values ($1, $2, $3)
             on conflict (name) do update set address = $2, count = $3, beaten_at = now()"
        );
        // Rows of servers that ended without saying so. Only this removal uses the time of the
        // database.
        let remove =
            format!("delete from {schema}.server where beaten_at < now() - interval '1 day'");
        self.connection.execute(&beat, &[&server.as_str(), address, &count]).await?;
        self.connection.execute(&remove, &[]).await.map(drop)
    }

    pub(crate) async fn heartbeats(&self) -> Result<Vec<Heartbeat>, LogError> {
        let list = format!(
            "select name, address, count from {}.server order by name collate \"C\"",
            self.schema
        );
        let rows = self.connection.query(&list, &[]).await?;
        rows.iter()
            .map(|row| {
                Heartbeat::new(ServerName::new(row.get(0))?, row.get(1), position(row.get(2)))
            })
            .collect()
    }

    pub(crate) async fn forget(&self, server: &ServerName) -> Result<(), LogError> {
        let sql = format!("delete from {}.server where name = $1", self.schema);
        self.connection.execute(&sql, &[&server.as_str()]).await.map(drop)
    }
}

fn number(shard: Shard) -> i32 {
    i32::from(shard.get())
}

/// A position as the column has it. No log reaches the limit of the column.
fn signed(position: u64) -> i64 {
    i64::try_from(position).unwrap_or(i64::MAX)
}

fn position(column: i64) -> u64 {
    u64::try_from(column).unwrap_or(0)
}

fn part_number(part: u32) -> Result<i32, LogError> {
    Snapshot::check_part(part, 0)?;
    Ok(i32::try_from(part).expect("invariant: checked"))
}
