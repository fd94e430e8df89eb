//! Temporary directories of tests: each has its own name and is removed when dropped.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A temporary directory, removed when dropped.
#[derive(Debug)]
pub struct TempDir(PathBuf);

impl TempDir {
    /// Creates an empty directory under the system's temporary directory.
    #[expect(clippy::new_without_default, reason = "creating a directory is not a default value")]
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        loop {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let name = format!("keypeg-test-{}-{count}", std::process::id());
            let path = std::env::temp_dir().join(name);
            match std::fs::create_dir(&path) {
                Ok(()) => return Self(path),
                // A killed test with the same process id may have left its directory.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => panic!("{}: {error}", path.display()),
            }
        }
    }

    /// Creates a directory with copies of the files in `from`, which has no subdirectories.
    pub fn copy_of(from: &Path) -> Self {
        let copy = Self::new();
        for entry in std::fs::read_dir(from).expect("a directory to copy") {
            let entry = entry.expect("an entry");
            std::fs::copy(entry.path(), copy.0.join(entry.file_name())).expect("copies a file");
        }
        copy
    }

    /// Returns the path of the directory.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
