//! Errors of PostgreSQL: which of them another attempt can cure, and which an operator must.

use keypeg_log::LogError;
use std::error::Error as _;
use tokio_postgres::Error;
use tokio_postgres::error::SqlState;

/// The error of a pooler between the server and PostgreSQL.
pub(crate) const POOLED: &str = "a connection pooler gives each transaction another session of \
    PostgreSQL, which has not the settings of the first: connect to PostgreSQL directly, or set \
    pool_mode = session for this database in PgBouncer";

/// What the client says of a host that `target_session_attrs=read-write` rejects.
const NO_WRITES: &str = "database does not allow writes";

/// Returns the error of a log for one of PostgreSQL.
pub(crate) fn fault(error: &Error) -> LogError {
    let Some(found) = error.as_db_error() else {
        if let Some(refusal) = certificate_refusal(error) {
            return LogError::Unsuitable(format!(
                "the certificate of PostgreSQL is refused: {refusal}: set sslrootcert=FILE to the \
                 authority that signed it, and use a host name of the certificate in the URL"
            ));
        }
        if error.source().is_some_and(|cause| cause.to_string() == NO_WRITES) {
            return LogError::Unavailable("a standby, or read-only: not the primary".to_owned());
        }
        // `{error}` alone says only "error connecting to server".
        let cause = error.source().map_or_else(String::new, |cause| format!(": {cause}"));
        return LogError::Unavailable(format!("{error}{cause}"));
    };
    let text = format!("{} ({})", found.message(), found.code().code());
    let next_step = match found.code().code() {
        "28P01" | "28000" => "check user and password in the URL, and pg_hba.conf",
        "3D000" => "create the database, or name another one in the URL",
        "42501" => "grant the user this right, or let an owner create the schema",
        "42P01" | "42703" => {
            "the tables of the schema are missing or not those of this version: if they were there \
             before, restore them; for a new installation use another schema=NAME"
        }
        // A statement that another session has prepared.
        "26000" | "42P05" => POOLED,
        "53300" => "raise max_connections: a server needs one for each of its shards, and two more",
        "53100" => "give the disk of PostgreSQL more space",
        _ => return LogError::Unavailable(text),
    };
    if [SqlState::TOO_MANY_CONNECTIONS, SqlState::DISK_FULL].contains(found.code()) {
        return LogError::Unavailable(format!("{text}: {next_step}"));
    }
    LogError::Unsuitable(format!("PostgreSQL refuses: {text}: {next_step}"))
}

/// Returns why the certificate of the server is refused, if that is the cause of an error.
fn certificate_refusal(error: &Error) -> Option<&rustls::Error> {
    let io = error.source()?.downcast_ref::<std::io::Error>()?;
    let cause = io.get_ref()?.downcast_ref::<rustls::Error>()?;
    matches!(cause, rustls::Error::InvalidCertificate(_)).then_some(cause)
}
