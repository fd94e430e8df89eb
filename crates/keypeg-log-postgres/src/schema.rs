//! The tables of the log: created at the first start, under an advisory lock, with a version.

use crate::connection::Connection;
use keypeg_log::LogError;

/// The version of the tables below.
const VERSION: i32 = 1;
/// The advisory lock of all servers that create or check the tables: "keypeg" as a number.
const LOCK: i64 = 0x6b65_7970_6567;

/// Creates the tables where they do not exist, or checks their version.
pub(crate) async fn prepare(connection: &Connection, schema: &str) -> Result<(), LogError> {
    let begin = format!("begin; select pg_advisory_xact_lock({LOCK})");
    connection.batch(&begin).await?;
    let sql = "select exists(select from pg_namespace where nspname = $1), \
               to_regclass(format('%I.meta', $1::text)) is not null";
    let found = connection.query_one(sql, &[&schema]).await?;
    let (has_schema, has_tables): (bool, bool) = (found.get(0), found.get(1));
    if !has_schema {
        let sql = format!("create schema {schema}");
        connection.batch(&sql).await.map_err(|error| {
            let LogError::Unsuitable(what) = error else { return error };
            LogError::Unsuitable(format!(
                "{what}. As an owner of the database, run: create schema {schema} authorization USER"
            ))
        })?;
    }
    if !has_tables {
        connection.batch(&tables(schema)).await?;
    }
    let sql = format!("select version from {schema}.meta");
    let version: i32 = connection.query_one(&sql, &[]).await?.get(0);
    connection.batch("commit").await?;
    if version == VERSION {
        return Ok(());
    }
    Err(LogError::Unsuitable(format!(
        "the tables in the schema {schema} have version {version}; this server knows version \
         {VERSION}: use the newer server, or another schema=NAME"
    )))
}

/// Returns the statements that create the tables.
fn tables(schema: &str) -> String {
    // Frames and parts are not compressed: their length must be known without reading them. The
    // heads are updated in place (HOT), so their pages keep free space.
    format!(
        "create table {schema}.meta (
           one boolean primary key default true check (one), version int not null,
           installation bytea);
         insert into {schema}.meta (version) values ({VERSION});
         create table {schema}.head (
           shard int primary key, position bigint not null, last bytea not null,
           proofs bigint not null default 0) with (fillfactor = 50);
         create table {schema}.frame (
           shard int, position bigint, frame bytea not null, primary key (shard, position));
         alter table {schema}.frame alter frame set storage external;
         create table {schema}.snapshot (
           shard int, position bigint, manifest bytea not null, primary key (shard, position));
         create table {schema}.part (
           shard int, position bigint, attempt bytea, part int, bytes bytea not null,
           primary key (shard, position, attempt, part));
         alter table {schema}.part alter bytes set storage external;
         create table {schema}.server (
           name text primary key, address text not null, count bigint not null,
           beaten_at timestamptz not null default now());"
    )
}
