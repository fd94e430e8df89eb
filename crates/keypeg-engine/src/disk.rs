//! The small trait that a real directory and a simulated one both meet.
//!
//! A file's bytes are durable after its `sync`, its name after `sync_dir`; nothing else is
//! promised. Knows nothing of journals.

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::Path;

/// One directory of flat files, held by this process alone.
pub trait Disk: Send + Sync {
    /// The names in it, in no order.
    fn list(&self) -> io::Result<Vec<String>>;
    /// A whole file.
    fn read(&self, name: &str) -> io::Result<Vec<u8>>;
    /// At most `len` bytes from a file's beginning.
    fn read_head(&self, name: &str, len: usize) -> io::Result<Vec<u8>>;
    /// Opens a file that is there.
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;
    /// Makes a file that is not there yet, `len` zero bytes long.
    fn create(&self, name: &str, len: u64) -> io::Result<Box<dyn DiskFile>>;
    /// Renames a file, replacing any of the new name.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes names durable.
    fn sync_dir(&self) -> io::Result<()>;
}

/// An open file.
pub trait DiskFile: Send + Sync {
    /// Its length in bytes.
    fn length(&self) -> io::Result<u64>;
    /// Reads exactly as many bytes as `bytes` holds, from an offset.
    fn read_at(&self, at: u64, bytes: &mut [u8]) -> io::Result<()>;
    /// Writes all of `bytes` at an offset.
    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()>;
    /// Cuts it, or lets it grow by zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Makes what was written durable. A failed one is never tried again.
    fn sync(&self) -> io::Result<()>;
}

/// A real directory, locked for as long as this lives.
#[derive(Debug)]
pub struct Directory {
    dir: File,
}

/// Zero bytes written at a time.
const ZEROS: usize = 1 << 20;

impl Directory {
    /// Makes the directory if it is not there (mode 0700) and locks it.
    ///
    /// The error is [`io::ErrorKind::WouldBlock`] when another process has it.
    pub fn open(path: &Path) -> io::Result<Self> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = File::from(rustix::fs::open(path, flags, Mode::empty())?);
        // On the directory itself: unlike a lock file it cannot be removed, and unlike fcntl's
        // locks it is not lost when some other descriptor is closed.
        rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive)?;
        rustix::fs::fchmod(&dir, Mode::RWXU)?;
        Ok(Self { dir })
    }

    fn open_file(&self, name: &str, flags: OFlags) -> io::Result<File> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(File::from(rustix::fs::openat(&self.dir, name, flags, Mode::RUSR | Mode::WUSR)?))
    }
}

impl Disk for Directory {
    fn list(&self) -> io::Result<Vec<String>> {
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
        Ok(Box::new(self.open_file(name, OFlags::RDWR)?))
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Box<dyn DiskFile>> {
        let mut file = self.open_file(name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)?;
        // Real zeros, not a hole: writing over them later changes no metadata of the file.
        let zeros = vec![0; ZEROS.min(usize::try_from(len).unwrap_or(ZEROS))];
        let mut left = len;
        while left > 0 {
            let part = usize::try_from(left).unwrap_or(ZEROS).min(zeros.len());
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

    fn read_at(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(bytes, at)
    }

    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, at)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        Self::set_len(self, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}
