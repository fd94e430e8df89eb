//! The pages of the error codes of backups.

use super::ProblemPage;

pub(super) const BACKUP_RUNNING: ProblemPage = ProblemPage::new(
    "A server runs one backup at a time, and another one has not ended. It ends when its client has \
     read it or disconnects.",
    &[
        "Wait until the other backup has ended, then send the request again.",
        "If no other backup should run, look for its client: the audit log has a line for each \
         backup that began.",
    ],
    "No. The server changed nothing, so it is safe to send the same request again.",
)
.headers(&[("Retry-After", "Seconds after which the same request can succeed.")]);

pub(super) const BACKUP_UNSUPPORTED: ProblemPage = ProblemPage::new(
    "The server keeps its data in memory only (`--ephemeral`), so there is no data to back up.",
    &["Start the server with `--data`, then create backups."],
    "No. The server changed nothing.",
);
