//! The disk interface: a trait that the real directory and the simulated disk both implement.
//!
//! The bytes of a file are durable after its `sync`, its name after `sync_dir`; no other guarantee
//! is made. This file does not know the journal or any other file format.

use rustix::fs::{AtFlags, FlockOperation, Gid, Mode, OFlags, Stat, Uid};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::Path;

/// One directory of flat files, used by this process alone.
pub trait Disk: Send + Sync {
    /// Returns the names of the files, in no particular order.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Reads a whole file.
    fn read(&self, name: &str) -> io::Result<Vec<u8>>;
    /// Reads at most `len` bytes from the start of a file.
    fn read_head(&self, name: &str, len: usize) -> io::Result<Vec<u8>>;
    /// Opens an existing file.
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;
    /// Creates a new file of `len` zero bytes; fails if the name exists.
    fn create(&self, name: &str, len: u64) -> io::Result<Box<dyn DiskFile>>;
    /// Renames a file and replaces any file that has the new name.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes all file names durable.
    fn sync_dir(&self) -> io::Result<()>;
}

/// An open file.
pub trait DiskFile: Send + Sync {
    /// Returns the length of the file in bytes.
    fn length(&self) -> io::Result<u64>;
    /// Reads from a byte offset until `bytes` is full.
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()>;
    /// Writes all of `bytes` at a byte offset.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Truncates the file, or extends it with zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Makes all written bytes durable. A failed sync is never retried.
    fn sync(&self) -> io::Result<()>;
}

/// Returns true if the disk, or the quota of this user, is full, or if the file has reached the
/// process's limit of a file's size (`ulimit -f`).
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

/// A real directory, locked until this value is dropped.
#[derive(Debug)]
pub struct Directory {
    dir: File,
    /// How existing files are opened: a check needs, and has, no permission to write.
    access: OFlags,
    /// Whom root gives the files that it creates; `None` if this process is not root.
    owner: Option<(Uid, Gid)>,
}

/// Zero bytes that one write of a new file contains.
const ZEROS_LEN: usize = 1 << 20;

/// The mode of a directory that this file creates, whatever the umask is.
const DIR_MODE: Mode = Mode::RWXU;
/// The mode of a file that this file creates, whatever the umask is.
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);

impl Directory {
    /// Creates the directory (mode 0700) if it does not exist, and locks it. An existing directory
    /// keeps its mode.
    ///
    /// Returns [`io::ErrorKind::WouldBlock`] when another process has locked it.
    pub fn open(path: &Path) -> io::Result<Self> {
        let is_new = create_dir(path)?;
        let this = Self::lock(path, OFlags::RDWR, FlockOperation::NonBlockingLockExclusive)?;
        if is_new {
            rustix::fs::fchmod(&this.dir, DIR_MODE)?;
        }
        Ok(this)
    }

    /// Locks an existing directory to read it: it needs no permission to write, and changes
    /// nothing. Several processes can read one directory.
    ///
    /// Returns [`io::ErrorKind::WouldBlock`] when a server has locked it.
    pub fn open_read_only(path: &Path) -> io::Result<Self> {
        Self::lock(path, OFlags::RDONLY, FlockOperation::NonBlockingLockShared)
    }

    fn lock(path: &Path, access: OFlags, lock: FlockOperation) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = File::from(rustix::fs::open(path, flags, Mode::empty())?);
        // The lock is on the directory itself: unlike a lock file it cannot be removed, and unlike
        // an fcntl lock it is not lost when another descriptor of the directory is closed.
        rustix::fs::flock(&dir, lock)?;
        let owner = rustix::process::geteuid().is_root().then(|| owner_of(&dir)).transpose()?;
        Ok(Self { dir, access, owner })
    }

    fn open_file(&self, name: &str, flags: OFlags) -> io::Result<File> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(File::from(rustix::fs::openat(&self.dir, name, flags, FILE_MODE)?))
    }

    /// Opens an existing file to read and write it.
    pub(crate) fn open_to_write(&self, name: &str) -> io::Result<File> {
        self.open_file(name, self.access)
    }

    /// Creates a new, empty file, which only its owner can read.
    pub(crate) fn create_empty(&self, name: &str) -> io::Result<File> {
        let file = self.open_file(name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)?;
        rustix::fs::fchmod(&file, FILE_MODE)?;
        if let Some((user, group)) = self.owner {
            // A file system can refuse it. The next start then names the owner and the next step.
            let _ = rustix::fs::fchown(&file, Some(user), Some(group));
        }
        Ok(file)
    }

    /// Returns the owner and the mode of the directory.
    pub(crate) fn stat(&self) -> io::Result<Stat> {
        Ok(rustix::fs::fstat(&self.dir)?)
    }

    /// Returns the owner and the mode of a file; a symbolic link is not followed.
    pub(crate) fn file_stat(&self, name: &str) -> io::Result<Stat> {
        Ok(rustix::fs::statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Returns the names of the files that are UTF-8, in no particular order.
    pub(crate) fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.dir)? {
            if let Ok(name) = entry?.file_name().to_str()
                && name != "."
                && name != ".."
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }
}

/// Returns the owner of the directory: the user of the server, also where root runs a command on it.
fn owner_of(dir: &File) -> io::Result<(Uid, Gid)> {
    let found = rustix::fs::fstat(dir)?;
    Ok((Uid::from_raw(found.st_uid), Gid::from_raw(found.st_gid)))
}

/// Creates a directory and its parents; returns false if it exists.
fn create_dir(path: &Path) -> io::Result<bool> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        found => return found.map(|_| false),
    }
    let mut builder = std::fs::DirBuilder::new();
    builder.mode(DIR_MODE.as_raw_mode());
    if let Some(parent) = path.parent().filter(|parent| *parent != Path::new("")) {
        builder.recursive(true).create(parent)?;
    }
    builder.recursive(false).create(path)?;
    Ok(true)
}

impl Disk for Directory {
    fn list(&self) -> io::Result<Vec<String>> {
        self.names()
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.open_file(name, OFlags::RDONLY)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn read_head(&self, name: &str, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.open_file(name, OFlags::RDONLY)?.take(len as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(self.open_to_write(name)?))
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Box<dyn DiskFile>> {
        let mut file = self.create_empty(name)?;
        // Written zeros, not a hole: later writes then change no metadata of the file.
        let zeros = vec![0; ZEROS_LEN.min(usize::try_from(len).unwrap_or(ZEROS_LEN))];
        let mut left = len;
        while left > 0 {
            let part = usize::try_from(left).unwrap_or(ZEROS_LEN).min(zeros.len());
            file.write_all(&zeros[..part])?;
            left -= part as u64;
        }
        file.seek(SeekFrom::Start(0))?;
        Ok(Box::new(file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.dir, from, &self.dir, to)?)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.dir, name, AtFlags::empty())?)
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.dir.sync_all()
    }
}

impl DiskFile for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(bytes, offset)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        Self::set_len(self, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}
