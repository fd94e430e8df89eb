//! A copy-on-write disk: reads from another disk and keeps every change in memory, or in a file
//! without a name.
//!
//! `check` runs a start on it to learn the result without changing the directory. Changed bytes are
//! kept in blocks of 4 KiB and are lost when it is dropped. It is efficient only for the operations
//! of a start.

mod spill;

pub(crate) use spill::Spill;

use crate::disk::{Disk, DiskFile};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes of a block.
const BLOCK: u64 = spill::LEN as u64;

/// A disk that never changes the disk below it.
pub(crate) struct Preview {
    below: Arc<dyn Disk>,
    names: Mutex<Names>,
    /// Where changed blocks are kept, if not in memory.
    spill: Option<Arc<Spill>>,
}

#[derive(Default)]
struct Names {
    /// Files that were created, opened or renamed through this disk.
    overlays: BTreeMap<String, Arc<Overlay>>,
    /// Names of the disk below that were removed or renamed through this disk.
    removed: BTreeSet<String>,
}

/// A disk without files, for a preview of a directory that does not exist.
pub(crate) struct NoFiles;

impl Disk for NoFiles {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn read(&self, _name: &str) -> io::Result<Vec<u8>> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn read_head(&self, _name: &str, _len: usize) -> io::Result<Vec<u8>> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn open(&self, _name: &str) -> io::Result<Box<dyn DiskFile>> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn create(&self, _name: &str, _len: u64) -> io::Result<Box<dyn DiskFile>> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn rename(&self, _from: &str, _to: &str) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn remove(&self, _name: &str) -> io::Result<()> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn sync_dir(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A file and its changed blocks.
struct Overlay {
    below: Option<Box<dyn DiskFile>>,
    state: Mutex<Blocks>,
    spill: Option<Arc<Spill>>,
}

/// A changed block.
enum Kept {
    Memory(Vec<u8>),
    Spilled(spill::Place),
}

struct Blocks {
    length: u64,
    /// The bytes of the file below that were not truncated.
    below_length: u64,
    changed: BTreeMap<u64, Kept>,
}

/// The part of a read or write that lies in one block.
struct Piece {
    /// The number of the block.
    block: u64,
    /// The range within the block.
    in_block: Range<usize>,
    /// The range within the bytes that are read or written.
    in_bytes: Range<usize>,
}

impl Preview {
    pub(crate) fn over(below: Arc<dyn Disk>) -> Self {
        Self { below, names: Mutex::default(), spill: None }
    }

    /// Keeps changed blocks in a file, and about 50 bytes of each in memory.
    pub(crate) fn spilling(below: Arc<dyn Disk>, spill: Spill) -> Self {
        Self { below, names: Mutex::default(), spill: Some(Arc::new(spill)) }
    }

    fn file(&self, name: &str) -> io::Result<Arc<Overlay>> {
        let mut names = locked(&self.names);
        if let Some(file) = names.overlays.get(name) {
            return Ok(Arc::clone(file));
        }
        if names.removed.contains(name) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let below = self.below.open(name)?;
        let length = below.length()?;
        let file = Arc::new(Overlay::new(Some(below), length, self.spill.clone()));
        names.overlays.insert(name.to_owned(), Arc::clone(&file));
        Ok(file)
    }
}

impl Disk for Preview {
    fn list(&self) -> io::Result<Vec<String>> {
        let names = locked(&self.names);
        let mut listed: BTreeSet<String> = names.overlays.keys().cloned().collect();
        listed.extend(self.below.list()?.into_iter().filter(|name| !names.removed.contains(name)));
        Ok(listed.into_iter().collect())
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let file = self.file(name)?;
        let mut bytes = vec![0; usize::try_from(file.length()?).map_err(io::Error::other)?];
        file.read_at(0, &mut bytes)?;
        Ok(bytes)
    }

    fn read_head(&self, name: &str, len: usize) -> io::Result<Vec<u8>> {
        let file = self.file(name)?;
        let mut bytes = vec![0; usize::try_from(file.length()?).map_or(len, |all| all.min(len))];
        file.read_at(0, &mut bytes)?;
        Ok(bytes)
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(self.file(name)?))
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Box<dyn DiskFile>> {
        if self.list()?.iter().any(|existing| existing == name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = Arc::new(Overlay::new(None, len, self.spill.clone()));
        locked(&self.names).overlays.insert(name.to_owned(), Arc::clone(&file));
        Ok(Box::new(file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let file = self.file(from)?;
        let mut names = locked(&self.names);
        names.overlays.remove(from);
        names.removed.insert(from.to_owned());
        names.overlays.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.file(name)?;
        let mut names = locked(&self.names);
        names.overlays.remove(name);
        names.removed.insert(name.to_owned());
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        Ok(())
    }
}

impl Overlay {
    fn new(below: Option<Box<dyn DiskFile>>, length: u64, spill: Option<Arc<Spill>>) -> Self {
        let below_length = if below.is_some() { length } else { 0 };
        let state = Mutex::new(Blocks { length, below_length, changed: BTreeMap::new() });
        Self { below, state, spill }
    }

    /// Returns the content of a block: the changed block, else the bytes below, padded with zeros.
    fn block(&self, state: &Blocks, number: u64) -> io::Result<Vec<u8>> {
        match (state.changed.get(&number), &self.spill) {
            (Some(Kept::Memory(block)), _) => return Ok(block.clone()),
            (Some(Kept::Spilled(place)), Some(spill)) => return spill.get(*place),
            (Some(Kept::Spilled(_)), None) | (None, _) => {}
        }
        let mut block = vec![0; usize::try_from(BLOCK).map_err(io::Error::other)?];
        let offset = number * BLOCK;
        if let Some(below) = &self.below
            && offset < state.below_length
        {
            let len = BLOCK.min(state.below_length - offset);
            below.read_at(offset, &mut block[..usize::try_from(len).map_err(io::Error::other)?])?;
        }
        Ok(block)
    }

    /// Keeps a changed block.
    fn keep(&self, state: &mut Blocks, number: u64, block: Vec<u8>) -> io::Result<()> {
        let kept = if let Some(spill) = &self.spill {
            let replaced = match state.changed.get(&number) {
                Some(Kept::Spilled(place)) => Some(*place),
                Some(Kept::Memory(_)) | None => None,
            };
            Kept::Spilled(spill.put(block, replaced)?)
        } else {
            Kept::Memory(block)
        };
        state.changed.insert(number, kept);
        Ok(())
    }

    /// Splits the `len` bytes from `offset` on at block boundaries.
    fn pieces(offset: u64, len: usize) -> impl Iterator<Item = Piece> {
        let mut done = 0;
        std::iter::from_fn(move || {
            let start = offset + done as u64;
            let start_in_block = usize::try_from(start % BLOCK).ok()?;
            let part = (len - done).min(usize::try_from(BLOCK).ok()? - start_in_block);
            let in_block = start_in_block..start_in_block + part;
            let piece = Piece { block: start / BLOCK, in_block, in_bytes: done..done + part };
            done += part;
            (part > 0).then_some(piece)
        })
    }
}

impl DiskFile for Arc<Overlay> {
    fn length(&self) -> io::Result<u64> {
        Ok(locked(&self.state).length)
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let state = locked(&self.state);
        if offset + bytes.len() as u64 > state.length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for piece in Overlay::pieces(offset, bytes.len()) {
            let block = self.block(&state, piece.block)?;
            bytes[piece.in_bytes].copy_from_slice(&block[piece.in_block]);
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = locked(&self.state);
        for piece in Overlay::pieces(offset, bytes.len()) {
            let bytes = &bytes[piece.in_bytes];
            let block = if bytes.len() as u64 == BLOCK {
                bytes.to_vec()
            } else {
                let mut block = self.block(&state, piece.block)?;
                block[piece.in_block].copy_from_slice(bytes);
                block
            };
            self.keep(&mut state, piece.block, block)?;
        }
        state.length = state.length.max(offset + bytes.len() as u64);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = locked(&self.state);
        if len < state.length {
            // The rest of the last block must read as zeros if the file grows again.
            let mut block = self.block(&state, len / BLOCK)?;
            block[usize::try_from(len % BLOCK).map_err(io::Error::other)?..].fill(0);
            state.changed.split_off(&(len / BLOCK));
            self.keep(&mut state, len / BLOCK, block)?;
            state.below_length = state.below_length.min(len);
        }
        state.length = len;
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use keypeg_testkit::{SeededRandom, TempDir};
    use std::fs::File;
    use std::os::unix::fs::FileExt as _;

    fn unnamed() -> File {
        let dir = TempDir::new();
        let path = dir.path().join("blocks");
        File::options().read(true).write(true).create_new(true).open(path).expect("a file")
    }

    /// Both keep the same bytes, whatever is written, cut and grown.
    #[test]
    fn a_preview_in_a_file_reads_as_one_in_memory() {
        for seed in 0..4 {
            let random = &mut SeededRandom(seed);
            let below = || Arc::new(NoFiles) as Arc<dyn Disk>;
            let spill = Spill::new(unnamed(), &mut SeededRandom(seed));
            let disks = [Preview::over(below()), Preview::spilling(below(), spill)];
            let files = disks.each_ref().map(|disk| disk.create("a", 10_000).expect("created"));
            for _ in 0..50 {
                let offset = random.below(40_000);
                let len = if random.below(3) == 0 { BLOCK } else { random.below(10_000) };
                let offset = if len == BLOCK { offset / BLOCK * BLOCK } else { offset };
                let byte = u8::try_from(random.below(256)).expect("a byte");
                let bytes = vec![byte; usize::try_from(len).expect("short")];
                for file in &files {
                    if byte % 5 == 0 {
                        file.set_len(offset).expect("cut");
                    } else {
                        file.write_at(offset, &bytes).expect("written");
                    }
                }
            }
            let [one, other] = disks.each_ref().map(|disk| disk.read("a").expect("read"));
            assert!(one == other, "seed {seed}");
        }
    }

    #[test]
    fn the_file_of_a_preview_has_no_byte_of_a_block_and_a_changed_one_is_found() {
        let file = unnamed();
        let spill = Spill::new(file.try_clone().expect("a handle"), &mut SeededRandom(1));
        let disk = Preview::spilling(Arc::new(NoFiles), spill);
        let written = b"a value of a key ".repeat(1_000);
        let kept = disk.create("a", 0).expect("created");
        kept.write_at(0, &written).expect("written");
        assert_eq!(disk.read("a").expect("read"), written);
        let mut bytes =
            vec![0; usize::try_from(file.metadata().expect("a length").len()).expect("short")];
        file.read_exact_at(&mut bytes, 0).expect("read");
        assert!(bytes.len() >= written.len() && !bytes.windows(7).any(|found| found == b"a value"));
        file.write_all_at(&[bytes[5_000] ^ 1], 5_000).expect("changed");
        let error = disk.read("a").expect_err("changed");
        assert!(error.to_string().contains("was changed"), "{error}");
    }

    #[test]
    fn a_full_disk_at_the_file_of_a_preview_is_an_error_that_names_it() {
        let full = File::options().read(true).write(true).open("/dev/full").expect("a device");
        let spill = Spill::new(full, &mut SeededRandom(1));
        let disk = Preview::spilling(Arc::new(NoFiles), spill);
        let error = disk.create("a", 0).expect("created").write_at(0, &[1]).expect_err("full");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(error.to_string().contains("in the temporary file"), "{error}");
    }
}
