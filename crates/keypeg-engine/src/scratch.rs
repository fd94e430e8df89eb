//! A directory of temporary files, for the replicas of shards: each replica gets an empty directory
//! below it, which is removed with the replica.
//!
//! Nothing in it outlives the process that wrote it, so nothing is synced. It does not know what the
//! files contain. Values of keys can be in them, so only their owner can read them.

use crate::disk::{Directory, Disk, DiskFile};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The beginning of the names of all directories below a scratch directory.
const PREFIX: &str = "shard-";

/// A directory of temporary files, locked by this process until the value and all its disks are
/// dropped.
#[derive(Clone, Debug)]
pub struct Scratch(Arc<Root>);

#[derive(Debug)]
struct Root {
    /// Holds the lock.
    _lock: Directory,
    path: PathBuf,
    disks: AtomicU64,
}

impl Scratch {
    /// Opens or creates a directory (mode 0700), locks it, and removes what an earlier process has
    /// left in it. Other files than those of replicas stay.
    ///
    /// Returns [`io::ErrorKind::WouldBlock`] when another process has locked it.
    pub fn open(path: &Path) -> io::Result<Self> {
        let lock = Directory::open(path)?;
        for name in lock.names()? {
            if name.starts_with(PREFIX) {
                std::fs::remove_dir_all(path.join(name))?;
            }
        }
        Ok(Self(Arc::new(Root { _lock: lock, path: path.to_owned(), disks: AtomicU64::new(0) })))
    }

    /// Returns an empty directory for a replica of a shard. It is removed when it is dropped.
    pub fn shard(&self, shard: u16) -> io::Result<Arc<dyn Disk>> {
        // A number of its own: the files of an earlier replica may still be open.
        let number = self.0.disks.fetch_add(1, Ordering::Relaxed);
        let path = self.0.path.join(format!("{PREFIX}{shard}-{number}"));
        let directory = Directory::open(&path)?;
        Ok(Arc::new(Unsynced { directory, path, _root: Arc::clone(&self.0) }))
    }

    /// Returns the directory.
    pub fn path(&self) -> &Path {
        &self.0.path
    }
}

/// The directory of one replica, whose syncs do nothing.
struct Unsynced {
    directory: Directory,
    path: PathBuf,
    _root: Arc<Root>,
}

impl Drop for Unsynced {
    fn drop(&mut self) {
        // What stays is removed by the next start.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

impl Disk for Unsynced {
    fn list(&self) -> io::Result<Vec<String>> {
        self.directory.list()
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        self.directory.read(name)
    }

    fn read_head(&self, name: &str, len: usize) -> io::Result<Vec<u8>> {
        self.directory.read_head(name, len)
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(UnsyncedFile(self.directory.open_to_write(name)?)))
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Box<dyn DiskFile>> {
        // A hole instead of zeros: a segment that is never filled then takes no space.
        let file = self.directory.create_empty(name)?;
        file.set_len(len)?;
        Ok(Box::new(UnsyncedFile(file)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.directory.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.directory.remove(name)
    }

    fn sync_dir(&self) -> io::Result<()> {
        Ok(())
    }
}

struct UnsyncedFile(File);

impl DiskFile for UnsyncedFile {
    fn length(&self) -> io::Result<u64> {
        self.0.length()
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, bytes)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, bytes)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        DiskFile::set_len(&self.0, len)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keypeg_testkit::TempDir;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    #[test]
    fn each_replica_has_an_empty_private_directory_that_goes_with_it() {
        let dir = TempDir::new();
        let path = dir.path().join("scratch");
        let scratch = Scratch::open(&path).unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o700);
        let first = scratch.shard(3).unwrap();
        let file = first.create("a", 1 << 20).unwrap();
        file.write_at(5, b"bytes").unwrap();
        file.sync().unwrap();
        let second = scratch.shard(3).unwrap();
        assert_eq!((first.list().unwrap(), second.list().unwrap()), (vec!["a".to_owned()], vec![]));
        let of_first = path.join("shard-3-0");
        assert_eq!((mode(&of_first), mode(&of_first.join("a"))), (0o700, 0o600));
        let metadata = of_first.join("a").metadata().unwrap();
        assert_eq!(metadata.len(), 1 << 20);
        assert!(metadata.blocks() * 512 < 1 << 20, "a file takes the space of its bytes");
        drop(first);
        assert!(!of_first.exists() && path.join("shard-3-1").exists());
    }

    #[test]
    fn what_an_earlier_process_has_left_is_removed_and_other_files_stay() {
        let dir = TempDir::new();
        for name in ["shard-0-7", "other"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            std::fs::write(dir.path().join(name).join("a"), "b").unwrap();
        }
        let scratch = Scratch::open(dir.path()).unwrap();
        assert!(!dir.path().join("shard-0-7").exists());
        assert!(dir.path().join("other/a").exists());
        let again = Scratch::open(dir.path()).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::WouldBlock, "two servers never share a directory");
        let disk = scratch.shard(0).unwrap();
        drop(scratch);
        assert!(Scratch::open(dir.path()).is_err(), "a replica still uses it");
        drop(disk);
        Scratch::open(dir.path()).unwrap();
    }
}
